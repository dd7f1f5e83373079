"""What a plan is made of. A step is one API call, with how to undo it and what to wait for."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Params = Mapping[str, Any]


class Secret(str):
    """Stands for the value of a secret, which is read when the plan is carried out."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Its name or ARN in Secrets Manager."""
        return str(self)


class PolicyArn(str):
    """Stands for the ARN that a scaling policy of this name gets when it is made."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The policy's name."""
        return str(self)


@dataclass(frozen=True, slots=True)
class Undo:
    """The call that removes what a step made."""

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
    # Fields that must have these values at the end; else what was asked for was rolled back.
    expects: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One call. `resource` says what it is about, in the words of a person."""

    title: str
    resource: str
    service: str
    operation: str
    params: Params
    undo: Undo | None = None
    wait: Wait | None = None
    # Deleting what is already gone is no error.
    may_be_missing: bool = False


@dataclass(frozen=True, slots=True)
class Upload:
    """Put a file or a packed folder on S3. `code` travels as code/ in the archive."""

    title: str
    source: Path
    code: Path | None
    bucket: str
    key: str

    @property
    def resource(self) -> str:
        """The object that is made."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def undo(self) -> Undo:
        """Delete the object."""
        return Undo("delete_object", {"Bucket": self.bucket, "Key": self.key})


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order, and what a person should know before they are carried out."""

    name: str
    steps: tuple[Step | Upload, ...]
    facts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    policies: Mapping[str, Any] = dataclasses.field(default_factory=dict)
