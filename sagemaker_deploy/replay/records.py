"""Recorded requests: SageMaker's data capture, or a log of requests; both are lines of JSON.

A line of a log is {"body": {...}, "answer": {...}, "path", "replay_info", "latency_s"}; all but
`body` may be missing. `replay --save` and `proxy --record` write such lines.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.proxy.translation.answers import read_answer

ROUTE = "route="
Json = dict[str, Any]
# From an S3 URL to the names and texts of the objects below it.
ReadS3 = Callable[[str], Iterable[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request and its answer; `answer` is None if it was not recorded."""

    name: str
    body: Json
    answer: Any = None
    path: str | None = None
    replay_info: Json | None = None
    latency_s: float | None = None


def read_records(source: str, from_s3: ReadS3 | None = None) -> list[Recorded]:
    """Read a file, the `.jsonl` files of a folder, or those of an S3 prefix. Raises ConfigError."""
    texts: Iterable[tuple[str, str]]
    texts = from_s3(source) if source.startswith("s3://") and from_s3 else _local(Path(source))
    records = []
    for name, text in texts:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                records.append(parse_line(f"{name}:{number}", line))
    if not records:
        raise ConfigError([f"{source}: no records in it"])
    return records


def read_s3(aws: Aws, url: str) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of the objects below an S3 prefix, in the order of the names."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    for page in aws.pages("s3", "list_objects_v2", Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            if item["Key"].endswith((".jsonl", ".json")):
                answer = aws.call("s3", "get_object", Bucket=bucket, Key=item["Key"])
                yield item["Key"], answer["Body"].read().decode()


def _local(path: Path) -> Iterator[tuple[str, str]]:
    if not path.exists():
        raise ConfigError([f"{path}: no such file or folder"])
    for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
        yield file.name, file.read_text()


def parse_line(name: str, line: str) -> Recorded:
    """Parse a line of either format. Raises ConfigError with the line's name."""
    try:
        value = json.loads(line)
        return _captured(name, value) if "captureData" in value else _logged(name, value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{name}: neither a line of data capture nor of a log with `body`: {error!r}"
        raise ConfigError([problem]) from error


def _logged(name: str, value: Json) -> Recorded:
    body = value["body"]
    if not isinstance(body, dict):
        raise TypeError("body is not an object")
    return Recorded(
        str(value.get("name") or name),
        body,
        value.get("answer"),
        value.get("path"),
        value.get("replay_info"),
        value.get("latency_s"),
    )


def _captured(name: str, value: Json) -> Recorded:
    capture = value["captureData"]
    metadata = value.get("eventMetadata") or {}
    body = json.loads(_data(capture["endpointInput"]))
    if not isinstance(body, dict):
        raise TypeError("the captured input is not an object")
    output = capture.get("endpointOutput")
    answer = read_answer(_data(output), body) if output else None
    attributes = ",".join(metadata.get("customAttributes") or [])
    path = attributes.partition(ROUTE)[2].partition(",")[0].partition(";")[0] or None
    return Recorded(str(metadata.get("eventId") or name), body, answer, path)


def _data(part: Json) -> bytes:
    data = part["data"]
    if part.get("encoding") == "BASE64":
        return base64.b64decode(data)
    return str(data).encode()
