"""Fixtures that all tests share, and the tier of each test."""

import gc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType

import openai
import pytest

from container import transformers_index
from tests.support.servers import DEMO_MODEL, Server, SharedServers, serving, wait_stopped

transformers_index.install()

TESTS = Path(__file__).parent
# The SageMaker SDK's pins exclude the server's, so its tests have an environment of their own.
HAS_SDK = importlib.util.find_spec("sagemaker") is not None
collect_ignore = [] if HAS_SDK else ["deploy", "sdk"]

# A test's tiers follow from its folder, its fixtures, and the names that it or a helper in its
# module uses. `slow` alone is written at the test.
FOLDERS = {
    "integration": "server",
    "docker_image": "server",
    "sdk": "server",
    "model": "model",
    "real": "model",
}
FIXTURES = {
    "server": "server",
    "client": "server",
    "shared_servers": "server",
    "fake_local": "server",
    "renderer": "server",
    "endless_model": "model",
    "findings": "model",  # of the doctor, which reads torch
    "browser": "browser",
    "page": "browser",
}
NAMES = {
    "serving": "server",
    "spawn": "server",
    "subprocess": "server",
    "multiprocessing": "server",
    "Child": "server",
    "TemplateRenderer": "server",
    "GrammarClient": "server",
    "Babbler": "server",
    "torch": "model",
    "tiny_vision": "model",
    "encoders": "model",
    "embedders": "model",
    "torch_engine": "model",
    "browsing": "browser",
}


def pytest_collection_finish() -> None:
    """Keep garbage collections from torch and all else that the tests import."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str | None:
    """Say what this environment does not run."""
    return None if HAS_SDK else "tests/deploy and tests/sdk run in .venv-sdk: make test-sdk"


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tiers, which pyproject.toml explains."""
    for item in items:
        for tier in sorted(_tiers(item)):
            item.add_marker(tier)


def _tiers(item: pytest.Item) -> set[str]:
    folders = item.path.relative_to(TESTS).parts[:-1]
    fixtures = getattr(item, "fixturenames", ())
    names: set[str] = set()
    if isinstance(item, pytest.Function):
        names = _names_used(item.function)
        for name in fixtures:  # those of the test's module
            fixture = getattr(item.module, name, None)
            names |= _names_used(fixture) if callable(fixture) else set()
    tiers = [FOLDERS.get(name) for name in folders]
    tiers += [FIXTURES.get(name) for name in fixtures]
    tiers += [NAMES.get(name) for name in names]
    return {tier for tier in tiers if tier}


def _names_used(test: Callable[..., object]) -> set[str]:
    """Return the global names in a test, or a fixture, and in functions of its module it calls."""
    test = inspect.unwrap(test)
    test = getattr(getattr(test, "hypothesis", None), "inner_test", test)
    names: set[str] = set()
    codes = [test.__code__]
    while codes:
        code = codes.pop()
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        for name in set(code.co_names) - names:
            names.add(name)
            helper = inspect.unwrap(test.__globals__.get(name))
            if isinstance(helper, FunctionType) and helper.__module__ == test.__module__:
                codes.append(helper.__code__)
    return names


@pytest.fixture(scope="session", autouse=True)
def _shared_renderer() -> Iterator[None]:
    """Let all chat templates share a renderer: each of its processes takes a second to start."""
    chat_template = sys.modules.get("container.text.templates.chat_template")
    if chat_template is None:  # no test module imports it
        yield
        return
    renderer = chat_template.TemplateRenderer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template, "TemplateRenderer", lambda: renderer)
        yield
    renderer.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model, served by real processes, shared by all tests that do not break it."""
    with serving(tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture(scope="session")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServers]:
    """Servers by their settings, for tests that leave them able to serve."""
    servers = SharedServers(tmp_path_factory.mktemp("shared"))
    yield servers
    servers.stop()


def pytest_sessionfinish() -> None:
    """Leave no server behind."""
    wait_stopped()


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model whose completions end only by length."""
    from tests.support.models import tiny_models  # torch, which not every environment has

    folder = tmp_path_factory.mktemp("models") / "endless"
    tiny_models.save_endless(folder, tokenizer_from=DEMO_MODEL)
    return folder


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    """OpenAI's own client, pointed at the server."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)
