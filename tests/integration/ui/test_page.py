"""The page in a real browser, against real servers; the screenshots of docs/ are made here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.integration.ui.chat_page import ANSWERED, KEY, answer, ask, press_button, stub_answer
from tests.support.chromium import Page
from tests.support.models import tiny_vision
from tests.support.pictures import data_url, random_picture
from tests.support.servers import DEMO_MODEL, Server, serving

HOSTILE = (
    "**bold** <script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "[a](javascript:window.hacked=1) ![pixel](https://elsewhere.example/pixel.png)"
    "<style>body { display: none }</style>\n\n```python\nprint('hi')\n```\n"
)
LONG_ANSWER = "[ab ]{1800}"  # a form that only the limit ends


def test_a_chat_streams_and_shows_tokens_with_alternatives(page: Page, shots: Path) -> None:
    page.fill("#temperature", "0")
    page.click("#logprobs")
    ask(page, "What is deep learning?")
    assert "Deep learning" in answer(page)
    assert "first after" in page.text(".message.assistant .facts")
    press_button(page, "Tokens")
    page.run("document.querySelector('.tokens').focus()")
    page.press("ArrowRight")
    page.press("ArrowRight")
    page.press("ArrowLeft")
    rows = page.run("document.querySelectorAll('.alternatives tbody tr').length")
    assert rows == 5
    first = page.text(".tokens [aria-selected=true]")
    assert first in page.text(".alternatives caption")
    page.screenshot(shots / "chat.png")


def test_regenerating_and_editing_replace_what_followed(page: Page) -> None:
    page.fill("#temperature", "0")
    ask(page, "What is deep learning?")
    before = answer(page)
    press_button(page, "Regenerate")
    page.wait(f"{ANSWERED}?.textContent.includes('tokens')")
    assert answer(page) == before
    page.run("document.querySelector('[aria-label=\"Edit message\"]').click()")
    assert page.run("document.querySelectorAll('.message').length") == 0
    assert page.run("document.querySelector('#prompt').value") == "What is deep learning?"


def test_a_conversation_survives_a_reload_and_ends_with_new_chat(page: Page) -> None:
    ask(page, "Hello!")
    page.call("Page.reload")
    page.wait("document.querySelectorAll('.message').length === 2")
    page.click("#new-chat")
    assert page.run("document.querySelectorAll('.message').length") == 0


def test_escape_stops_an_answer_and_keeps_its_text(page: Page, served: Server) -> None:
    page.fill("#format", "regex")
    page.fill("#regex", LONG_ANSWER)
    page.fill("#prompt", "Go on.")
    page.press("Enter")
    page.wait("document.querySelector('.message.assistant .body')?.innerText.length > 5")
    page.press("Escape")
    page.wait(f"{ANSWERED}?.textContent.includes('stopped')")
    assert len(answer(page)) > 5
    page.wait("!document.querySelector('#send').hidden")


def test_a_stream_that_is_cut_says_so_and_keeps_what_there_is(page: Page) -> None:
    stub_answer(page, {"content": "half of"}, is_whole=False)
    page.fill("#prompt", "Hi")
    page.press("Enter")
    page.wait(
        "document.querySelector('.assistant .error').textContent.includes('connection ended')"
    )
    assert answer(page) == "half of"
    assert "Try again" in page.text(".assistant .bar")


def test_a_message_that_failed_is_left_out_of_the_next_request(page: Page) -> None:
    page.fill("#top_p", "3")
    page.fill("#prompt", "First")
    page.press("Enter")
    page.wait("document.querySelector('.assistant .error').textContent.includes('top_p')")
    page.problems.clear()  # the browser logs the status 400
    page.fill("#top_p", "")
    stub_answer(page, {"content": "Fine."})
    ask(page, "Second")
    assert page.run("window.asked.messages.map((message) => message.content)") == ["Second"]


def test_tools_are_called_and_their_results_answered(page: Page) -> None:
    page.fill("#temperature", "0")
    page.click("#example-tool")
    ask(page, "What is the weather in Paris in celsius?")
    assert "get_current_weather" in page.text(".call")
    arguments = json.loads(page.text(".call pre"))
    assert arguments["location"].startswith("Paris")
    page.fill(".message.assistant form textarea", '{"temperature": 21, "unit": "celsius"}')
    page.click(".message.assistant form button")
    page.wait("document.querySelectorAll('.message').length === 4")
    page.wait(f"{ANSWERED}?.textContent.includes('tokens')")
    assert answer(page)
    page.fill("#tools", "[{")
    page.wait("document.querySelector('#tools-error').textContent")
    page.fill("#prompt", "And now?")
    page.press("Enter")
    page.wait(
        "document.querySelector('.message:last-child .error').textContent.startsWith('Tools:')"
    )


def test_the_schema_editor_shapes_the_answer(page: Page) -> None:
    page.fill("#format", "json_schema")
    page.wait("document.querySelectorAll('.field-row').length === 2")
    page.click("#add-field")
    page.run("""(() => {
        const row = document.querySelector('.field-row:last-child');
        const [name, type] = row.querySelectorAll('input, select');
        name.value = "is_known"; type.value = "boolean";
        type.dispatchEvent(new Event("input", { bubbles: true }));
    })()""")
    schema = json.loads(page.run("document.querySelector('#schema').value"))
    assert schema["properties"]["is_known"] == {"type": "boolean"}
    ask(page, "Give me a JSON object with name and age for Ada, 36.")
    assert set(json.loads(answer(page))) == {"name", "age", "is_known"}
    page.fill("#schema", json.dumps({"type": "object", "properties": {"city": {"type": "string"}}}))
    assert page.run("document.querySelector('.field-row input').value") == "city"
    page.fill("#schema", "{")
    assert page.text("#schema-error")


def test_rows_keep_what_they_cannot_say(page: Page) -> None:
    street = {"type": "object", "properties": {"street": {"type": "string"}}}
    age = {"type": "integer", "minimum": 0, "description": "In years."}
    schema = {
        "type": "object",
        "properties": {"home": street, "age": age, "kind": {"enum": ["a", "b"]}},
        "required": ["home", "age"],
        "additionalProperties": False,
    }
    page.fill("#format", "json_schema")
    page.fill("#schema", json.dumps(schema))
    page.click("#add-field")
    rows = "document.querySelectorAll('.field-row')"
    assert page.run(f"{rows}.length") == 2  # that of `age` and the new one
    page.fill(".field-row:last-child input", "age")
    assert "already" in page.text("#schema-error")
    page.fill(".field-row:last-child input", "name")
    page.fill(".field-row:first-child input", "years")
    edited = json.loads(page.run("document.querySelector('#schema').value"))
    assert list(edited["properties"]) == ["home", "years", "kind", "name"]
    assert edited["properties"]["home"] == street
    assert edited["properties"]["years"] == age
    assert edited["required"] == ["home", "years", "name"]
    page.run(f"{rows}[0].querySelector('button').click()")
    edited = json.loads(page.run("document.querySelector('#schema').value"))
    assert list(edited["properties"]) == ["home", "kind", "name"]
    assert edited["required"] == ["home", "name"]
    assert page.text("#schema-error") == ""


def test_answers_are_markdown_and_harmless(page: Page, served: Server) -> None:
    stub_answer(page, {"reasoning_content": "Let me think."}, {"content": HOSTILE})
    ask(page, "Try to break out.")
    assert page.text(".assistant strong") == "bold"
    assert page.text(".assistant pre code").strip() == "print('hi')"
    assert page.run("window.hacked") is None
    tags = page.run(
        "[...document.querySelectorAll('.assistant .body *')].map(e => e.tagName).join()"
    )
    assert not {"SCRIPT", "IMG", "STYLE", "IFRAME"} & set(tags.split(","))
    links = page.run(
        "[...document.querySelectorAll('.assistant .body a')].map(a => a.href + a.rel)"
    )
    assert not any("javascript:" in link for link in links)
    assert page.run("document.querySelector('.assistant details.reasoning').open") is False
    assert "Let me think." in page.run(
        "document.querySelector('.assistant details.reasoning').textContent"
    )
    # The content policy has stopped what DOMPurify then removed, and the browser says so.
    assert all("Content Security Policy" in problem for problem in page.problems)
    page.problems.clear()


def test_errors_say_what_to_do(page: Page) -> None:
    page.fill("#top_p", "3")
    page.fill("#prompt", "Hi")
    page.press("Enter")
    page.wait("document.querySelector('.message.assistant .error').textContent.includes('top_p')")
    page.problems.clear()  # the browser logs the status 400


def test_a_key_is_asked_for_and_stays_in_the_tab(page: Page, served: Server) -> None:
    page.run("sessionStorage.removeItem('api-key')")
    page.open("about:blank")
    page.open(f"{served.url}/")
    page.wait("document.querySelector('#key-dialog').open")
    assert page.text("#key-error") == ""
    page.fill("#api-key", "wrong")
    page.run("document.querySelector('#key-form button[type=submit]').click()")
    page.wait("document.querySelector('#key-error').textContent.includes('not accept')")
    assert page.run("document.querySelector('#key-dialog').open") is True
    page.fill("#api-key", KEY)
    page.run("document.querySelector('#key-form button[type=submit]').click()")
    page.wait("document.querySelector('#model option')")
    assert KEY not in page.run("JSON.stringify(localStorage) + location.href + document.cookie")
    page.problems.clear()  # the browser logs the status 401


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "text"])
def test_the_code_of_a_request_runs(
    page: Page, served: Server, tmp_path: Path, is_chat: bool
) -> None:
    page.fill("#temperature", "0")
    page.fill("#top_k", "5")
    page.fill("#max_tokens", "30")
    if is_chat:
        page.fill("#system", 'It\'s a "test".')
    else:
        page.click("#continue-text")
    page.fill("#prompt", "What's deep learning?")
    page.click("#show-code")
    programs = {}
    for kind in ("curl", "python", "boto3"):
        page.click(f"[data-kind={kind}]")
        programs[kind] = page.text("#code")
    page.run("document.querySelector('#code-dialog [data-close]').click()")
    page.press("Enter") if page.run("document.activeElement.id === 'prompt'") else page.click(
        "#send"
    )
    page.wait(f"{ANSWERED}?.textContent.includes('tokens')")
    env = os.environ | {"API_KEY": KEY, "PYTHONPATH": os.fspath(tmp_path), "ENDPOINT": served.url}
    (tmp_path / "boto3.py").write_text(FAKE_BOTO3)
    said = answer(page)
    for kind, program in programs.items():
        command = ["bash", "-c"] if kind == "curl" else [sys.executable, "-c"]
        result = subprocess.run(
            [*command, program], capture_output=True, text=True, env=env, timeout=60, check=False
        )
        assert result.returncode == 0, f"{kind}: {result.stderr}\n{program}"
        text = _streamed(result.stdout) if kind == "curl" else result.stdout
        assert text.strip() == said.strip(), kind


def _streamed(events: str) -> str:
    chunks = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    return "".join(
        choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
        for chunk in chunks
        for choice in chunk["choices"]
    )


# SageMaker's runtime as boto3 has it, in front of the server.
FAKE_BOTO3 = """
import os, types, urllib.request

def client(name):
    assert name == "sagemaker-runtime"
    return types.SimpleNamespace(invoke_endpoint_with_response_stream=_invoke)

def _invoke(EndpointName, ContentType, Body):
    headers = {"Content-Type": ContentType, "Authorization": f"Bearer {os.environ['API_KEY']}"}
    url = os.environ["ENDPOINT"] + "/invocations"
    answer = urllib.request.urlopen(urllib.request.Request(url, Body.encode(), headers)).read()
    parts = [answer[at:at + 100] for at in range(0, len(answer), 100)]
    return {"Body": [{"PayloadPart": {"Bytes": part}} for part in parts]}
"""


def test_a_model_without_a_chat_template_continues_text(
    browser: Page, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("base")
    folder = shutil.copytree(DEMO_MODEL, root / "base", ignore=shutil.ignore_patterns("*.jinja"))
    with serving(root / "log", folder) as server:
        browser.open(f"{server.url}/ui")
        browser.run("sessionStorage.clear()")
        browser.open("about:blank")
        browser.open(f"{server.url}/ui")
        browser.wait("document.querySelector('#model option')")
        browser.fill("#max_tokens", "8")
        browser.fill("#prompt", "Once upon")
        browser.press("Enter")
        browser.wait(
            "document.querySelector('.assistant .error').textContent.includes('Continue the text')"
        )
        browser.click("#continue-text")
        press_button(browser, "Try again")
        browser.wait(f"{ANSWERED}?.textContent.includes('tokens')")
        assert answer(browser)
    browser.problems.clear()  # the browser logs the status 400


def test_an_image_is_attached_and_seen(
    browser: Page, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("seeing")
    folder = tiny_vision.save("llava", root / "llava")
    with serving(root / "log", folder) as server:
        browser.open(f"{server.url}/ui")
        browser.wait("document.querySelector('#model option')")
        _attach(browser, data_url(random_picture(1)))
        browser.wait("document.querySelector('#attachments img')")
        browser.fill("#max_tokens", "8")
        ask(browser, "What is this?")
        assert browser.run("document.querySelectorAll('.message.user img').length") == 1
        browser.run("document.querySelector('[aria-label=\"Edit message\"]').click()")
        browser.wait("document.querySelector('#attachments img')")
        browser.press("Enter")
        browser.wait(f"{ANSWERED}?.textContent.includes('tokens')")
        usage = browser.text(".message.assistant .facts")
        text = {"messages": [{"role": "user", "content": "What is this?"}], "max_tokens": 1}
        plain = requests.post(f"{server.url}/v1/chat/completions", json=text, timeout=60).json()
        assert int(usage.split()[0]) > plain["usage"]["prompt_tokens"]


def _attach(page: Page, url: str) -> None:
    """Choose a file, as the dialog would."""
    page.run(f"""(() => {{
        const [head, data] = {json.dumps(url)}.split(",");
        const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], "a.png", {{ type: head.slice(5).split(";")[0] }}));
        const input = document.querySelector("#image-file");
        input.files = files.files;
        input.dispatchEvent(new Event("change"));
    }})()""")
