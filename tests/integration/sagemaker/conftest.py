"""A server of the demo model with LoRA adapters."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.support.models import adapters
from tests.support.servers import DEMO_MODEL, Server, serving


def _adapter(folder: Path, seed: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    return adapters.save(folder, model, seed, r=4, lora_alpha=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("lora")
    return {name: _adapter(root / name, seed) for seed, name in enumerate(["red", "blue", "late"])}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[Server]:
    named = f"red={folders['red']},blue={folders['blue']}"
    with serving(tmp_path_factory.mktemp("server") / "log", LORA_ADAPTERS=named) as server:
        yield server
