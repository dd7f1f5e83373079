"""The cost of features: decode speed of the engine alone, 8 sequences, with and without each.

The plain run and the features take turns; the ratio of each turn to the plain run beside it is what
counts, since a shared machine makes all of a turn slow. Prompt log-probabilities are measured on
prompts, all else on decoding.
"""

import argparse
import statistics
import time

from benchmarks.models.bench_model import default_folder, is_written, make_model
from container.engine.engine import Engine
from container.grammar.forms import schema_answer
from container.grammar.shape import MessageShape, encode_shape
from container.messages.engine import LogprobMode, SamplingParams, Submit
from container.model.engine_loader import load_engine
from container.settings.engine import EngineSettings
from container.settings.model import ModelSettings
from container.settings.settings import Settings

CLIENTS, NEW_TOKENS, PROMPT = 8, 64, 128
LIST = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 12}, "count": {"type": "integer"}},
        "required": ["name", "count"],
        "additionalProperties": False,
    },
    "minItems": 1000,
}
GRAMMAR = encode_shape(MessageShape(answer=schema_answer(LIST, "benchmark")))


def features() -> dict[str, SamplingParams]:
    """The parameters of each run; the first is the baseline of all others."""
    plain = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    return {
        "plain": SamplingParams(**plain),
        "grammar": SamplingParams(**plain, grammar=GRAMMAR),
        "penalties": SamplingParams(
            **plain, repetition_penalty=1.1, frequency_penalty=0.5, presence_penalty=0.5
        ),
        "sampling": SamplingParams(**plain, temperature=0.8, top_p=0.95, top_k=50),
        "log-probabilities": SamplingParams(
            **plain, logprobs=LogprobMode.PROCESSED, top_logprobs=5
        ),
    }


def decode(engine: Engine, params: SamplingParams, turn: int) -> float:
    """Decode 8 sequences side by side; tokens each second, the prompts left out."""
    for client in range(CLIENTS):
        ids = [300 + (turn * CLIENTS + client) % 40_000] * 16
        engine.submit(b"", Submit(client, ids, params))
    begun: set[int] = set()
    while len(begun) < CLIENTS:  # prompts, and the compilation of a grammar
        begun |= {event.request_id for _, event in engine.step()}
    started, count = time.perf_counter(), 0
    while engine.has_work:
        count += len(engine.step())
    return count / (time.perf_counter() - started)


def read_prompts(engine: Engine, *, logprobs: bool, turn: int) -> float:
    """Serve 8 prompts and 64 tokens after each, as a client would; tokens each second."""
    params = SamplingParams(NEW_TOKENS, ignore_eos=True, prompt_logprobs=logprobs)
    started = time.perf_counter()
    for client in range(CLIENTS):
        first = 300 + (turn * CLIENTS + client) * PROMPT % 40_000
        engine.submit(b"", Submit(client, list(range(first, first + PROMPT)), params))
    count = 0
    while engine.has_work:
        count += len(engine.step())
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    turns = parser.parse_args().turns
    folder = default_folder()
    if not is_written(folder):
        make_model(folder)
    engine, _ = load_engine(
        Settings(
            model=ModelSettings(model_id=str(folder)), engine=EngineSettings(max_total_tokens=1024)
        ),
        print,
    )
    runs = features()
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    prompts: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(turns):
        for name, params in runs.items():
            speeds[name].append(decode(engine, params, turn))
        for index, logprobs in enumerate(prompts):
            prompts[logprobs].append(read_prompts(engine, logprobs=logprobs, turn=2 * turn + index))
    for name, values in speeds.items():
        _report(name, values, speeds["plain"])
    _report("prompt log-probabilities", prompts[True], prompts[False])


def _report(name: str, values: list[float], plain: list[float]) -> None:
    ratios = sorted(value / base for value, base in zip(values, plain, strict=True))
    speed, ratio = statistics.median(values), statistics.median(ratios)
    span = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    print(f"{name}: {speed:.0f} tokens/s, {ratio:.3f} of plain ({span})")


if __name__ == "__main__":
    main()
