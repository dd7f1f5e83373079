"""The page as a user drives it: asks, reads answers, presses buttons."""

import json

from tests.support.chromium import Page

KEY = "a-secret"
ANSWERED = "document.querySelector('.message.assistant:last-child .facts')"


def ask(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("Enter")
    page.wait(f"{ANSWERED}?.textContent.includes('tokens')")


def press_button(page: Page, name: str) -> None:
    """Press a button of the answers, by what it shows."""
    buttons = "[...document.querySelectorAll('.assistant button')]"
    page.run(f"{buttons}.find((each) => each.textContent === '{name}').click()")


def answer(page: Page) -> str:
    return page.text(".message.assistant:last-child .body")


def stub_answer(page: Page, *deltas: dict, is_whole: bool = True) -> None:
    """Let the next chat request get these deltas instead of the server's; keep its body."""
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": len(deltas)}})
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    text += "data: [DONE]\n\n" if is_whole else ""
    page.run(f"""(() => {{
        const real = window.fetch;
        window.fetch = (...given) => {{
            if (!String(given[0]).endsWith("/v1/chat/completions")) return real(...given);
            window.fetch = real;
            window.asked = JSON.parse(given[1].body);
            return Promise.resolve(new Response({json.dumps(text)}));
        }};
    }})()""")
