"""The records of the local control plane: created resources by kind and name.

A record is the input of its Create call plus its ARN and times. The rules that join records are
control.py's. Thread-safe.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sagemaker_deploy.local.refusals import ACCOUNT, control_validation

Record = dict[str, Any]
MAX_REASON_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of resource. `noun` is its word in the API's action names."""

    noun: str
    arn_path: str
    list_field: str

    @property
    def status_field(self) -> str:
        """The name of the status field."""
        return f"{self.noun}Status"

    @property
    def name_field(self) -> str:
        """The name of the name field."""
        return f"{self.noun}Name"

    @property
    def arn_field(self) -> str:
        """The name of the ARN field."""
        return f"{self.noun}Arn"


MODEL = Kind("Model", "model", "Models")
CONFIG = Kind("EndpointConfig", "endpoint-config", "EndpointConfigs")
ENDPOINT = Kind("Endpoint", "endpoint", "Endpoints")
COMPONENT = Kind("InferenceComponent", "inference-component", "InferenceComponents")
JOB = Kind("TransformJob", "transform-job", "TransformJobSummaries")
KINDS = (MODEL, CONFIG, ENDPOINT, COMPONENT, JOB)


class Resources:
    """All records, by kind and name."""

    def __init__(self, region: str) -> None:
        self.region = region
        self._records: dict[tuple[Kind, str], Record] = {}
        self._tags: dict[str, dict[str, str]] = {}
        self._lock = threading.RLock()

    def arn(self, kind: Kind, name: str) -> str:
        """Return the local ARN of a name."""
        return f"arn:aws:sagemaker:{self.region}:{ACCOUNT}:{kind.arn_path}/{name.lower()}"

    def create(self, kind: Kind, fields: Mapping[str, Any]) -> Record:
        """Add a record. Raises Refusal if the name is taken."""
        name = str(fields[kind.name_field])
        now = time.time()
        arn = self.arn(kind, name)
        with self._lock:
            if (kind, name) in self._records:
                raise control_validation(f'Cannot create already existing {_words(kind)} "{arn}".')
            record = {**fields, kind.arn_field: arn, "CreationTime": now, "LastModifiedTime": now}
            self._records[kind, name] = record
            self.tag(arn, fields.get("Tags", []))
        return record

    def get(self, kind: Kind, name: str) -> Record:
        """Return a copy of a record. Raises Refusal if there is none."""
        with self._lock:
            record = self._records.get((kind, name))
            if record is None:
                raise control_validation(f'Could not find {_words(kind)} "{self.arn(kind, name)}".')
            return dict(record)

    def has(self, kind: Kind, name: str) -> bool:
        """Whether the name is taken."""
        return (kind, name) in self._records

    def change(self, kind: Kind, name: str, **fields: Any) -> None:
        """Set fields of a record, if it still exists."""
        with self._lock:
            if record := self._records.get((kind, name)):
                record.update(fields, LastModifiedTime=time.time())

    def set_status(
        self, kind: Kind, name: str, status: str, error: Exception | None = None
    ) -> None:
        """Set a record's status, and the error behind it as the reason of a failure."""
        reason = str(error)[:MAX_REASON_CHARACTERS] if error is not None else None
        self.change(kind, name, **{kind.status_field: status}, FailureReason=reason)

    def delete(self, kind: Kind, name: str) -> None:
        """Remove a record. Raises Refusal if there is none."""
        with self._lock:
            arn = self.get(kind, name)[kind.arn_field]
            del self._records[kind, name]
            self._tags.pop(arn, None)

    def all(self, kind: Kind) -> list[Record]:
        """List every record of a kind, newest first."""
        with self._lock:
            records = [dict(record) for (its, _), record in self._records.items() if its is kind]
        return sorted(records, key=lambda record: record["CreationTime"], reverse=True)

    def tag(self, arn: str, tags: list[Mapping[str, str]]) -> None:
        """Add tags."""
        self._tags.setdefault(arn, {}).update({tag["Key"]: tag["Value"] for tag in tags})

    def untag(self, arn: str, keys: list[str]) -> None:
        """Remove tags."""
        for key in keys:
            self._tags.get(arn, {}).pop(key, None)

    def tags(self, arn: str) -> list[dict[str, str]]:
        """Return the tags of a resource."""
        return [{"Key": key, "Value": value} for key, value in self._tags.get(arn, {}).items()]


def _words(kind: Kind) -> str:
    return kind.arn_path.replace("-", " ")
