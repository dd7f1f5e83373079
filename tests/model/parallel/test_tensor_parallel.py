"""The theorem for models that are split over ranks: gloo processes stand in for GPUs."""

import random
from pathlib import Path

import pytest

from container.messages.engine import SamplingParams
from tests.support.engines import Job
from tests.support.models import tiny_models
from tests.support.rank_engines import generate, generate_each, save


def jobs(count: int, seed: int = 5) -> list[Job]:
    rnd = random.Random(seed)
    created = []
    for _ in range(count):
        prompt = [rnd.randrange(2, tiny_models.VOCABULARY) for _ in range(rnd.randint(1, 60))]
        params = SamplingParams(rnd.randint(1, 30), ignore_eos=True)
        created.append(Job(prompt, params, at_step=rnd.randrange(20)))
    return created


def test_a_seed_gives_the_same_ids_on_several_ranks(tmp_path: Path) -> None:
    folder = save("llama_wide", tmp_path)
    environ = {"TENSOR_PARALLEL": "4", "DTYPE": "bfloat16", "MAX_BATCH_TOTAL_TOKENS": "4096"}
    params = SamplingParams(20, temperature=1.0, seed=7, ignore_eos=True)
    seeded = Job(list(range(2, 30)), params, at_step=3)
    _, (among, alone) = generate_each(folder, environ, [*jobs(10), seeded], [seeded])
    assert among[-1] == alone[0]


@pytest.mark.parametrize(
    ("name", "ranks", "more"),
    [
        ("llama", 2, {}),
        ("llama", 2, {"OVERLAP_STEPS": "1", "SWAP_SPACE": "0.01"}),
        ("gpt_neox", 4, {"SWAP_SPACE": "0.01"}),
        ("gemma3", 2, {"OVERLAP_STEPS": "1"}),
        ("qwen3_moe", 2, {}),
        ("llama4", 2, {}),
        ("llama_wide", 4, {"OVERLAP_STEPS": "1"}),
        ("phi3", 2, {}),
    ],
    ids=lambda one: ",".join(one) or "plain" if isinstance(one, dict) else str(one),
)
def test_greedy_output_of_several_ranks_equals_generate(
    name: str, ranks: int, more: dict[str, str], tmp_path: Path
) -> None:
    requests = jobs(8)
    environ = {
        "TENSOR_PARALLEL": str(ranks),
        "MAX_BATCH_TOTAL_TOKENS": "640",  # too little for all at once, so that some are preempted
        "MAX_TOTAL_TOKENS": "120",
        "MAX_BATCH_PREFILL_TOKENS": "24",
        **more,
    }
    info, got = generate(save(name, tmp_path), environ, requests)
    assert (info.tensor_parallel, info.attention) == (ranks, "paged")
    for index, job in enumerate(requests):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        assert got[index] == expected, f"request {index}"
