"""Counts the answers of a batch transform job and those that are errors."""

import json
from dataclasses import dataclass

from sagemaker_deploy.aws import Aws


@dataclass(slots=True)
class Count:
    """Lines of all of a job's objects, and the first error."""

    lines: int = 0
    errors: int = 0
    first_object: str = ""
    first_line: int = 0
    first_error: str = ""


def count(aws: Aws, output: str) -> Count:
    """Read every object below a job's output, line by line."""
    total = Count()
    bucket, _, prefix = output.removeprefix("s3://").partition("/")
    for page in aws.pages("s3", "list_objects_v2", Bucket=bucket, Prefix=f"{prefix.rstrip('/')}/"):
        for item in page.get("Contents", []):
            body = aws.call("s3", "get_object", Bucket=bucket, Key=item["Key"])["Body"]
            for number, line in enumerate(body.iter_lines(), 1):
                _add(total, f"s3://{bucket}/{item['Key']}", number, line)
    return total


def error_of(line: bytes) -> str | None:
    """Return the message if a line is an error object of any API, or joined with one."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if isinstance(value, dict) and "SageMakerOutput" in value:
        value = value["SageMakerOutput"]
    if not isinstance(value, dict) or "error" not in value:
        return None
    error = value["error"]
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _add(total: Count, name: str, number: int, line: bytes) -> None:
    if not line.strip():
        return
    total.lines += 1
    error = error_of(line)
    if error is None:
        return
    total.errors += 1
    if total.errors == 1:
        total.first_object, total.first_line, total.first_error = name, number, error[:300]
