import importlib.util
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.servers import DEMO_MODEL, Server, serving

# The SageMaker SDK's pins exclude the server's, so its tests have an environment of their own.
HAS_SDK = importlib.util.find_spec("sagemaker") is not None
collect_ignore = [] if HAS_SDK else ["deploy", "sdk"]


def pytest_report_header() -> str | None:
    """Say what this environment does not run."""
    return None if HAS_SDK else "tests/deploy and tests/sdk run in .venv-sdk: make test-sdk"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model, served by real processes, shared by all tests that do not break it."""
    with serving(tmp_path_factory.mktemp("server") / "log") as running:
        yield running


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
