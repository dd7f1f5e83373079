"""LoRA adapters of a tiny model."""

from pathlib import Path

import pytest

from tests.support.models import adapters

KINDS = {
    "small": {"r": 2, "lora_alpha": 8},
    "attention": {"r": 8, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "rooted": {"r": 4, "lora_alpha": 4, "use_rslora": True},
    "patterned": {"r": 4, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"down_proj": 20}},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: adapters.make(root / name, "llama", seed, **config)
        for seed, (name, config) in enumerate(KINDS.items())
    }
