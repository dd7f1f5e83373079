"""Further features of requests on recurrent models: adapters, late grammars, no drafts."""

import random
from pathlib import Path

import pytest

from container.messages.engine import SamplingParams
from tests.support.engines import Job, ids, run
from tests.support.grammars import ScriptedGrammars
from tests.support.models import adapters, tiny_models
from tests.support.torch_engines import adapters_of, torch_engine

PROMPTS = [list(range(2, 30)), [9, 8, 7, 6], list(range(50, 130)), [77]]
LAYERS = {
    "qwen3_next": ["in_proj_qkvz", "out_proj", "q_proj", "down_proj"],
    "bamba": ["in_proj", "out_proj", "v_proj"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_adapters_in_one_batch_equal_merged_models(tmp_path: Path, name: str) -> None:
    folders = {
        adapter: adapters.make(tmp_path / adapter, name, seed, target_modules=LAYERS[name])
        for seed, adapter in enumerate(("one", "two"))
    }
    engine = torch_engine(name, num_blocks=200, max_batch_tokens=20)
    for adapter, folder in folders.items():
        adapters_of(engine).add_now(adapter, str(folder), preload=True, pin=False)
    requested = [(prompt, adapter) for prompt in PROMPTS for adapter in ("", *folders)]
    params = SamplingParams(max_new_tokens=8)
    jobs = [Job(prompt, params, i % 3, adapter) for i, (prompt, adapter) in enumerate(requested)]
    events = run(engine, jobs)
    models = {adapter: adapters.merged(folder, name) for adapter, folder in folders.items()}
    for index, (prompt, adapter) in enumerate(requested):
        expected = (
            adapters.generate(models[adapter], prompt, 8)
            if adapter
            else tiny_models.reference(name, tuple(prompt), 8)
        )
        assert ids(events[index]) == expected, (index, adapter)


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("name", ["qwen3_next", "bamba"])
def test_a_late_bitmask_does_not_advance_the_states_twice(name: str, overlaps: bool) -> None:
    rnd = random.Random(1)
    grammars = ScriptedGrammars(lambda: rnd.random() < 0.4)
    engine = torch_engine(name, num_blocks=200, overlaps=overlaps, grammars=grammars)
    params = SamplingParams(max_new_tokens=12, grammar="ends 99")
    jobs = [Job(prompt, params) for prompt in PROMPTS] + [Job(PROMPTS[0], SamplingParams(12))]
    for index, job in enumerate(jobs):
        engine.submit(b"test", job.as_request(index))
    for constraint in grammars.asked:
        constraint.is_compiled = True
    got: dict[int, list[int]] = {}
    for _ in range(500):
        for _, event in engine.step():
            got.setdefault(event.request_id, []).append(event.token_id)
        engine.scheduler.check_invariants()
        if not engine.has_work:
            break
    for index, job in enumerate(jobs):
        assert got[index] == tiny_models.reference(name, tuple(job.prompt), 12)
