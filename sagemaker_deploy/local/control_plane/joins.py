"""Joins a transform job's answers with its input, line by line (DataProcessing.JoinSource). Pure.

As in "Associate prediction results with input records" of the SageMaker guide: an object gets the
key SageMakerOutput; other JSON becomes {"SageMakerInput", "SageMakerOutput"}; CSV gets columns.
"""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from sagemaker_deploy.local.refusals import control_validation

WHOLE = "$"  # the JSONPath of everything, and the default
CSV_TYPES = ("text/csv", "application/csv")


def check_processing(params: Mapping[str, Any]) -> None:
    """Refuse what the service refuses, and filters, which are not imitated. Raises Refusal."""
    processing = params.get("DataProcessing", {})
    for name in ("InputFilter", "OutputFilter"):
        if processing.get(name, WHOLE) != WHOLE:
            raise control_validation(f"The local endpoint does not imitate DataProcessing.{name}.")
    if processing.get("JoinSource", "None") == "None":
        return
    source, output = params["TransformInput"], params["TransformOutput"]
    if source.get("SplitType") != "Line" or output.get("AssembleWith") != "Line":
        raise control_validation("JoinSource needs SplitType and AssembleWith to be Line.")
    input_type, output_type = source.get("ContentType", ""), output.get("Accept", "")
    if output_type and _is_csv(input_type) != _is_csv(output_type):
        raise control_validation("JoinSource needs Accept and ContentType to be of one format.")


def with_input(data: bytes, outputs: bytes, content_type: str) -> bytes:
    """Join input and outputs. Raises ValueError if they have different numbers of lines."""
    records = [line for line in data.splitlines() if line.strip()]
    lines = _csv_records(outputs) if _is_csv(content_type) else outputs.splitlines()
    if len(records) != len(lines):
        raise ValueError(
            f"JoinSource: {len(records)} lines of input have {len(lines)} lines of answers"
        )
    pairs = zip(records, lines, strict=True)
    if _is_csv(content_type):
        return b"".join(record + b"," + line + b"\n" for record, line in pairs)
    return b"".join(_join_json(record, line) for record, line in pairs)


def _csv_records(data: bytes) -> list[bytes]:
    """Split CSV into records, which may have line breaks within quotes."""
    records = []
    for row in csv.reader(io.StringIO(data.decode(), newline="")):
        record = io.StringIO(newline="")
        csv.writer(record, lineterminator="\n").writerow(row)
        records.append(record.getvalue()[:-1].encode())
    return records


def _join_json(record: bytes, line: bytes) -> bytes:
    source, output = json.loads(record), json.loads(line)
    if isinstance(source, dict):
        return json.dumps({**source, "SageMakerOutput": output}).encode() + b"\n"
    both = {"SageMakerInput": source, "SageMakerOutput": output}
    return json.dumps(both).encode() + b"\n"


def _is_csv(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in CSV_TYPES
