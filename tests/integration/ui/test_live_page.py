"""The pages beside the chat: the live numbers of a server, and embeddings."""

from pathlib import Path
from threading import Thread

import requests

from tests.integration.ui.chat_page import KEY, ask
from tests.support.chromium import Page
from tests.support.servers import Server


def _stream(server: Server, model: str) -> None:
    """Read an answer that only its length ends, as a client of the server."""
    body = {"model": model, "messages": [{"role": "user", "content": "Go on."}], "stream": True}
    body |= {"ignore_eos": True, "max_tokens": 300}
    headers = {"Authorization": f"Bearer {KEY}"}
    requests.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=120)


def test_an_adapter_answers_and_is_counted_on_the_live_page(
    page: Page, served: Server, shots: Path
) -> None:
    page.fill("#model", "pirate")
    page.fill("#max_tokens", "40")
    ask(page, "Tell me a story about a lighthouse.")
    page.click("[data-page=server]")
    page.wait("document.querySelector('#adapters tbody').innerText.includes('pirate')")
    clients = [Thread(target=_stream, args=(served, name)) for name in ("tgi", "pirate", "tgi")]
    for client in clients:
        client.start()
    page.wait(
        "document.querySelector('.card polyline').getAttribute('points').split(' ').length > 2"
    )
    for client in clients:
        client.join()
    page.wait(
        "parseInt(document.querySelectorAll('#adapters td')[2].innerText.replace(',', '')) >= 600"
    )
    numbers = page.text("#numbers")
    for title in ("Tokens/s", "Time to first token", "KV blocks in use", "Prefix hits", "Requests"):
        assert title in numbers
    assert "max total tokens" in page.text("#facts")
    page.screenshot(shots / "server.png")


def test_the_stage_of_the_start_is_shown(page: Page, served: Server) -> None:
    source = """const real = window.fetch;
        const body = JSON.stringify({ error: "loading weights: 40 %", error_type: "healthcheck" });
        window.fetch = (url, options) => String(url).endsWith("/health") && !window.isLoaded
            ? Promise.resolve(new Response(body, { status: 503 })) : real(url, options);"""
    script = page.call("Page.addScriptToEvaluateOnNewDocument", source=source)
    page.open("about:blank")
    page.open(f"{served.url}/")
    page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
    page.wait("document.querySelector('#reason').textContent === 'loading weights: 40 %'")
    assert page.text("#state") == "not ready"
    page.run("window.isLoaded = true")
    page.wait("document.querySelector('#state').textContent === 'ready'")
    page.wait("document.querySelector('#model option')")
    assert page.text("#reason") == ""


def test_without_a_language_model_the_live_page_is_shown(page: Page, served: Server) -> None:
    source = """const real = window.fetch;
        window.fetch = (url, options) => String(url).endsWith("/info")
            ? Promise.resolve(new Response("{}", { status: 503 })) : real(url, options);"""
    script = page.call("Page.addScriptToEvaluateOnNewDocument", source=source)
    page.open("about:blank")
    page.open(f"{served.url}/")
    page.wait("document.querySelector('#model-name').textContent.startsWith('No language model')")
    page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
    assert page.text("#state") == "ready"
    assert page.run("document.querySelector('[data-page=chat]').hidden") is True
    page.wait("document.querySelector('#numbers').innerText.includes('Requests')")


def test_sentences_are_compared_by_the_embedding_model(page: Page) -> None:
    page.click("[data-page=embeddings]")
    page.fill("#source", "A cat sat on the mat.")
    page.fill("#sentences", "Stock prices fell on Monday.\nA kitten lay on a rug.")
    page.run("document.querySelector('#similarity button').click()")
    page.wait("document.querySelectorAll('#similarities tbody tr').length === 2")
    assert page.text("#similarities tbody tr").startswith("A kitten")
