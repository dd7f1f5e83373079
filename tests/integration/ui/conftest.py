"""A server with a key, an adapter and an embedding model, and its page in a browser."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.integration.ui.chat_page import KEY
from tests.support.chromium import Page, browsing
from tests.support.models import adapters
from tests.support.models.embedders import MINILM
from tests.support.servers import DEMO_MODEL, ROOT, Server, serving


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key, an adapter and an embedding model."""
    root = tmp_path_factory.mktemp("served")
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    adapter = adapters.save(root / "pirate", model, 1, r=4, lora_alpha=4)
    settings = {"API_KEY": KEY, "LORA_ADAPTERS": f"pirate={adapter}"}
    # The screenshots show its name, so it is relative: servers start in the repository's root.
    model_id = DEMO_MODEL.relative_to(ROOT)
    with serving(
        root / "log", model_id, EMBEDDING_MODEL_ID=os.fspath(MINILM), **settings
    ) as server:
        yield server


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(browser: Page, served: Server) -> Iterator[Page]:
    """The page of that server, with its key entered, and nothing wrong with it afterwards."""
    browser.resize(1280, 860)
    browser.prefer("light")
    browser.open(f"{served.url}/ui")
    browser.run(
        f"sessionStorage.clear(); localStorage.clear(); sessionStorage.setItem('api-key', '{KEY}')"
    )
    browser.open("about:blank")
    browser.problems.clear()
    browser.urls.clear()
    browser.open(f"{served.url}/")
    browser.wait("document.querySelector('#model option')")
    yield browser
    assert browser.problems == []
    assert {
        url for url in browser.urls if not url.startswith((served.url, "data:", "about:"))
    } == set()


@pytest.fixture(scope="package")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: `make screenshots` names the folder of docs/."""
    return Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("shots"))
