"""Greedy float32 output on the device equals transformers' generate on the CPU, token for token.

Each architecture runs with overlapped steps, CUDA graphs, preemption, prefix hits and host offload;
the first three in every combination. Then a model in bfloat16, up to ties.
"""

import random
from functools import partial
from typing import Any

from benchmarks.gpu_day.parts import images
from benchmarks.gpu_day.plan import Case, Scale
from benchmarks.gpu_day.results import Recorder
from benchmarks.gpu_day.supervise import ROOT

# A Llama, windows in some layers, attention sinks with experts.
FIRST = ("llama", "gemma3", "gpt_oss")
# Head norms, latents, biases by position, chunks of positions, states, encoders.
FURTHER = (
    "qwen3", "deepseek_v3", "bloom", "llama4", "qwen3_moe", "mistral", "gpt_neox", "qwen3_next",
    "mamba2", "bamba", "lfm2", "t5", "bart",
)  # fmt: skip
# In blocks of 16 tokens, as on GPUs.
SIZES = {"block_size": 16, "num_blocks": 100, "max_batch_tokens": 64}
FEW_BLOCKS = SIZES | {"num_blocks": 7, "max_total_tokens": 104, "max_input_tokens": 100}
SCHEDULES: dict[str, dict[str, Any]] = {
    "overlap and graphs": SIZES | {"overlaps": True, "recorded": (2, 4, 8)},
    "preemption": FEW_BLOCKS | {"overlaps": True, "recorded": (2, 8)},
    "host offload": FEW_BLOCKS | {"overlaps": True, "num_slots": 60},
    "eager, a token a step": SIZES | {"max_batch_tokens": 3},
}
SMALLEST_GAP = 0.15


def cases(scale: Scale) -> list[Case]:
    """Return the cases."""
    names = FIRST[:1] if scale.is_small else FIRST
    made = [
        Case(f"{name}: {schedule}", partial(compare, scale, name, schedule), 40)
        for name in names
        for schedule in (list(SCHEDULES)[1:3] if scale.is_small else SCHEDULES)
    ]
    made += [Case(f"{name}: prefix hits", partial(hit_prefixes, scale, name), 30) for name in names]
    if not scale.is_small:
        made.append(Case("bfloat16 beside float32", partial(compare_bfloat16, scale.device), 40))
        made += [Case(f"{name}: overlap", partial(compare_further, scale, name), 30)
                 for name in FURTHER]  # fmt: skip
    return made + images.cases(scale)


def compare(scale: Scale, name: str, schedule: str, recorder: Recorder) -> None:
    """Run requests that come and go; compare each with generate."""
    from tests.support.torch_engines import torch_engine

    engine = torch_engine(name, device=scale.device, **SCHEDULES[schedule])
    _assert_equal(engine, name, _jobs(4 if scale.is_small else 12), recorder)
    load = engine.load
    recorder.value("preemptions", load.preemptions)
    recorder.value("restored tokens", load.restored_tokens)
    if "num_slots" in SCHEDULES[schedule]:
        assert load.restored_tokens or scale.is_small, "no block came back from the host"


def compare_further(scale: Scale, name: str, recorder: Recorder) -> None:
    """Run a model of another kind; graphs only if the server would capture them."""
    from tests.support.torch_engines import torch_engine

    engine = torch_engine(name, device=scale.device, overlaps=True, **SIZES)
    model = engine.runner
    recorder.value("runner", type(model).__name__)
    forward = getattr(model, "forward", None)
    recorder.value("attention kernels", getattr(forward, "kernels", None))
    _assert_equal(engine, name, _jobs(6), recorder)


def hit_prefixes(scale: Scale, name: str, recorder: Recorder) -> None:
    """Run prompts that share a prefix."""
    from container.messages.engine import SamplingParams
    from tests.support.engines import Job
    from tests.support.torch_engines import torch_engine

    rnd = random.Random(8)
    shared = [rnd.randrange(2, 200) for _ in range(40)]
    jobs = [
        Job([*shared, rnd.randrange(2, 200)], SamplingParams(max_new_tokens=8), at_step=4 * index)
        for index in range(3 if scale.is_small else 8)
    ]
    engine = torch_engine(name, device=scale.device, **SCHEDULES["overlap and graphs"])
    _assert_equal(engine, name, jobs, recorder)
    recorder.value("cached tokens", engine.load.cached_tokens, "tokens", least=1)
    assert engine.load.cached_tokens > 0


def compare_bfloat16(device: str, recorder: Recorder) -> None:
    """Compare the demo model's greedy tokens in bfloat16 with float32's on the CPU.

    Where they first differ, float32's two best logits must be close: a tie at that precision.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.gpu_day.models import greedy, make_engine

    folder = ROOT / "examples" / "demo-model"
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    served = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager"
    )
    engine, _ = make_engine(served.eval().to(device), device, max_running=8)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (folder / "README.md").read_text().split()
    equal = ties = 0
    for index in range(8):
        prompt = tokenizer.encode(" ".join(text[20 * index : 20 * index + 20]))
        got = greedy(engine, prompt, 40)
        with torch.inference_mode():
            logits = exact(torch.tensor([prompt + got])).logits[0, len(prompt) - 1 : -1]
        gaps = logits.max(-1).values - logits.gather(1, torch.tensor(got)[:, None])[:, 0]
        differing = (gaps > 0).nonzero().flatten()
        equal += not len(differing)
        # After the first difference the texts are not comparable, but each token still must be one
        # that float32 finds about as likely.
        ties += int((gaps <= SMALLEST_GAP).sum())
    recorder.value("texts equal to float32's", equal, "of 8")
    recorder.value("tokens that are float32's best, or tied with it", ties / 320, least=0.97)


def _jobs(count: int) -> list[Any]:
    from container.messages.engine import SamplingParams
    from tests.support.engines import Job

    rnd = random.Random(3)
    jobs = []
    for _ in range(count):
        prompt = [rnd.randrange(2, 200) for _ in range(rnd.randint(1, 60))]
        params = SamplingParams(max_new_tokens=rnd.randint(1, 40))
        jobs.append(Job(prompt, params, at_step=rnd.randrange(30)))
    return jobs


def _assert_equal(engine: Any, name: str, jobs: list[Any], recorder: Recorder) -> None:
    from tests.support.engines import ids, run
    from tests.support.models import tiny_models

    got = run(engine, jobs)
    wrong = []
    for index, job in enumerate(jobs):
        expected = tiny_models.reference(name, tuple(job.prompt), job.params.max_new_tokens)
        if ids(got[index]) != expected:
            wrong.append(f"request {index}: {ids(got[index])} instead of {expected}")
    recorder.value("requests equal to generate's", len(jobs) - len(wrong), least=len(jobs))
    assert not wrong, "; ".join(wrong[:3])
