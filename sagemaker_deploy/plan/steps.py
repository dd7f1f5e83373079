"""The parts of a plan. A step is one API call, with its undo call and the status to wait for."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Params = Mapping[str, Any]


class Secret(str):
    """Placeholder for the value of a secret, which the executor reads."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Its name or ARN in Secrets Manager."""
        return str(self)


class PolicyArn(str):
    """Placeholder for the ARN that a scaling policy of this name gets on creation."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The policy's name."""
        return str(self)


@dataclass(frozen=True, slots=True)
class Undo:
    """The call that removes the resource that a step created."""

    operation: str
    params: Params


@dataclass(frozen=True, slots=True)
class Wait:
    """Poll a describe call until a status is reached."""

    operation: str
    params: Params
    field: str
    done: str
    failed: tuple[str, ...]
    reason: str = "FailureReason"
    timeout_s: int = 3600
    # Expected values of fields at the end, such as Specification.ModelName; other values mean that
    # the change was rolled back.
    expects: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One call. `resource` describes its resource to the user."""

    title: str
    resource: str
    service: str
    operation: str
    params: Params
    undo: Undo | None = None
    wait: Wait | None = None
    # Deleting a resource that does not exist is not an error.
    may_be_missing: bool = False
    # Once accepted, what earlier steps created is in use: a later failure must not remove it.
    uses_earlier: bool = False


@dataclass(frozen=True, slots=True)
class Upload:
    """Upload a file or a packed folder to S3. `code` becomes code/ in the archive.

    `key` holds a hash of the content. So an object that is there already is the same archive, which
    a running container may need: it is neither written again nor removed by an undo.
    """

    title: str
    source: Path
    code: Path | None
    bucket: str
    key: str

    @property
    def resource(self) -> str:
        """URL of the uploaded object."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def undo(self) -> Undo:
        """Delete the object."""
        return Undo("delete_object", {"Bucket": self.bucket, "Key": self.key})


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order, with facts and warnings for the user to read before execution."""

    name: str
    steps: tuple[Step | Upload, ...]
    facts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    policies: Mapping[str, Any] = dataclasses.field(default_factory=dict)
