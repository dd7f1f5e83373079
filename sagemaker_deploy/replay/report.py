"""The report of a replay, as data and as text."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from sagemaker_deploy.load import percentiles, tokens_of
from sagemaker_deploy.replay.compare import Difference, compare
from sagemaker_deploy.replay.records import Json, Recorded
from sagemaker_deploy.replay.send import Replayed

SHOWN = 20
# Facts of the container that may change an answer with the same seed.
FACTS = ("version", "model_id", "model_sha", "dtype", "quantize", "device", "cpu", "attention")


def make_report(records: Sequence[Recorded], answers: Sequence[Replayed]) -> Json:
    """Compare answers with recorded ones: a summary and a line for each request."""
    rows = [_row(record, answer) for record, answer in zip(records, answers, strict=True)]
    compared = [row for row in rows if row["difference"]]
    changed = [row for row in compared if not row["difference"]["is_exact"]]
    return {
        "requests": len(rows),
        "failed": sum(bool(row["error"]) for row in rows),
        "compared": len(compared),
        "exact": len(compared) - len(changed),
        "changed": len(changed),
        "mean_edit_ratio": _mean([row["difference"]["edit_ratio"] for row in compared]),
        "latency_s": percentiles([row["latency_s"] for row in rows if not row["error"]]),
        "recorded_latency_s": percentiles(
            [row["recorded_latency_s"] for row in rows if row["recorded_latency_s"] is not None]
        ),
        "first_s": percentiles([row["first_s"] for row in rows if not row["error"]]),
        "tokens": sum(row["tokens"] for row in rows),
        "recorded_tokens": sum(row["recorded_tokens"] for row in rows),
        "facts_that_differ": _facts(records, answers),
        "answers": rows,
    }


def _row(record: Recorded, answer: Replayed) -> Json:
    difference: Difference | None = None
    if record.answer is not None and not answer.error:
        difference = compare(record.answer, answer.answer)
    return {
        "name": record.name,
        "error": answer.error,
        "difference": dataclasses.asdict(difference) if difference else None,
        "latency_s": answer.latency_s,
        "recorded_latency_s": record.latency_s,
        "first_s": answer.first_s,
        "tokens": answer.tokens,
        "recorded_tokens": tokens_of(record.answer),
    }


def _facts(records: Sequence[Recorded], answers: Sequence[Replayed]) -> dict[str, list[Any]]:
    """Return the facts that recorded and replayed answers do not share: their values."""
    differing: dict[str, list[Any]] = {}
    for record, answer in zip(records, answers, strict=True):
        old, new = record.replay_info, answer.replay_info
        for name in FACTS if old and new else ():
            if old and new and old.get(name) != new.get(name):
                differing[name] = [old.get(name), new.get(name)]
    return differing


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def text(report: Json) -> Iterator[str]:
    """Yield the lines of the report for people; the answers that changed most come first."""
    yield (
        f"{report['requests']} requests: {report['exact']} answers exact, {report['changed']} "
        f"changed, {report['failed']} failed, "
        f"{report['requests'] - report['compared'] - report['failed']} without a recorded answer"
    )
    if report["compared"]:
        yield f"words changed, mean: {report['mean_edit_ratio']:.1%}"
    recorded = _times(report["recorded_latency_s"])
    yield f"latency: {_times(report['latency_s'])}; recorded: {recorded}"
    yield f"first bytes: {_times(report['first_s'])}"
    yield f"tokens: {report['tokens']}; recorded: {report['recorded_tokens']}"
    for name, (old, new) in report["facts_that_differ"].items():
        yield f"the containers differ: {name} was {old}, is {new}"
    changed = [row for row in report["answers"] if row["error"] or _is_changed(row)]
    changed.sort(key=lambda row: -(row["difference"] or {"edit_ratio": 1.0})["edit_ratio"])
    for row in changed[:SHOWN]:
        yield from _changed(row)
    if len(changed) > SHOWN:
        yield f"... and {len(changed) - SHOWN} more; --json has them all"


def _is_changed(row: Json) -> bool:
    return bool(row["difference"]) and not row["difference"]["is_exact"]


def _changed(row: Json) -> Iterator[str]:
    if row["error"]:
        yield f"{row['name']}: failed: {row['error']}"
        return
    difference = row["difference"]
    largest = difference["largest"]
    size = f"by up to {largest:.3g}" if largest is not None else "of the words"
    yield f"{row['name']}: {difference['edit_ratio']:.1%} {size}, from {difference['position']} on"
    yield f"  - {difference['before']!r}"
    yield f"  + {difference['after']!r}"


def _times(values: dict[str, float]) -> str:
    if not values:
        return "-"
    return ", ".join(f"{name} {seconds:.3f} s" for name, seconds in values.items())
