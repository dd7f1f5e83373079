"""Splits a batch transform job's input into bodies and assembles the responses. Pure."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TransformOptions:
    """A job's options: its own settings, else the container's, else the defaults."""

    concurrent: int = 1
    strategy: str = "MULTI_RECORD"
    payload_mb: int = 6


def transform_options(job: Mapping[str, Any], container: bytes | None) -> TransformOptions:
    """Merge a job's settings with the response of GET /execution-parameters, if any."""
    try:
        offered = json.loads(container or b"{}")
    except ValueError:
        offered = {}
    return TransformOptions(
        int(job.get("MaxConcurrentTransforms") or offered.get("MaxConcurrentTransforms") or 1),
        _strategy(job.get("BatchStrategy") or offered.get("BatchStrategy")),
        int(job.get("MaxPayloadInMB") or offered.get("MaxPayloadInMB") or 6),
    )


def bodies(data: bytes, split_type: str, how: TransformOptions) -> Iterator[bytes]:
    """Split one object into request bodies. Raises ValueError for a record that is too large."""
    limit = how.payload_mb * MB
    if split_type != "Line":
        yield _within(data, limit)
        return
    records = [line for line in data.splitlines() if line.strip()]
    if how.strategy == "SINGLE_RECORD":
        yield from (_within(record, limit) for record in records)
        return
    batch: list[bytes] = []
    size = 0
    for record in records:
        _within(record, limit)
        if batch and size + len(record) + 1 > limit:
            yield b"\n".join(batch) + b"\n"
            batch, size = [], 0
        batch.append(record)
        size += len(record) + 1
    if batch:
        yield b"\n".join(batch) + b"\n"


def assemble(responses: list[bytes], assemble_with: str) -> bytes:
    """Join all responses to one object, in order."""
    if assemble_with != "Line":
        return b"".join(responses)
    return b"".join(response.rstrip(b"\n") + b"\n" for response in responses)


def _within(record: bytes, limit: int) -> bytes:
    if len(record) > limit:
        raise ValueError(f"a record of {len(record)} bytes exceeds MaxPayloadInMB ({limit // MB})")
    return record


def _strategy(name: str | None) -> str:
    words = {"SingleRecord": "SINGLE_RECORD", "MultiRecord": "MULTI_RECORD"}
    return words.get(name or "", name or "MULTI_RECORD")
