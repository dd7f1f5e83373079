import random

import pytest
import torch

from container.messages.engine import SamplingParams
from tests.support.engines import Job, ids, run
from tests.support.torch_engines import torch_engine


def _sampled(seed: int, **more: float) -> SamplingParams:
    return SamplingParams(max_new_tokens=30, temperature=1.3, seed=seed, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3"])
def test_a_seed_gives_the_same_ids_in_a_batch(name: str, dtype: torch.dtype) -> None:
    rnd = random.Random(1)
    job = Job([9, 8, 7, 6, 5], _sampled(42, top_p=0.9, top_k=50), at_step=5)
    others = [
        Job(
            [rnd.randrange(2, 200) for _ in range(rnd.randint(1, 50))],
            _sampled(i),
            rnd.randrange(9),
        )
        for i in range(16)
    ]
    sizes = {"num_blocks": 400, "max_running": 17, "max_batch_tokens": 64}
    alone = ids(run(torch_engine(name, dtype, **sizes), [job])[0])
    among = ids(run(torch_engine(name, dtype, **sizes), [job, *others])[0])
    assert among == alone


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3"])
def test_a_seed_does_not_depend_on_chunks_or_cache(name: str) -> None:
    rnd = random.Random(4)
    sizes = {"num_blocks": 20, "block_size": 32}
    engines = [
        torch_engine(name, torch.bfloat16, max_batch_tokens=budget, **sizes)
        for budget in (512, 64, 37, 7)
    ]
    for seed in range(4):
        prompt = [rnd.randrange(2, 200) for _ in range(rnd.randint(20, 150))]
        job = Job(prompt, _sampled(seed))
        outputs = [ids(run(engine, [job])[0]) for engine in engines for _ in range(2)]
        assert all(output == outputs[0] for output in outputs)


def test_another_seed_gives_other_ids() -> None:
    jobs = [Job([9, 8, 7], _sampled(seed)) for seed in (1, 2)]
    got = run(torch_engine("llama"), jobs)
    assert ids(got[0]) != ids(got[1])
