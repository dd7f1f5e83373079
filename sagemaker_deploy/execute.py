"""Executes a plan step by step; on failure, removes the resources that it has created.

The only module that applies plans to AWS. The error names every resource that could not be removed.
"""

import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.errors import (
    AccessDenied,
    AwsError,
    ConfigError,
    DeployError,
    EndpointFailed,
    Interrupted,
    NotFound,
    StillBusy,
)
from sagemaker_deploy.plan.steps import Plan, PolicyArn, Secret, Step, Undo, Upload, Wait

Report = Callable[[str, str], None]  # resource, event
POLL_S = 10.0


class _CreatedResources:
    """The steps of one run that created a resource: those that nothing uses, and those in use."""

    def __init__(self) -> None:
        self.unused: list[Step | Upload] = []
        self.in_use: list[Step | Upload] = []

    def add(self, step: Step | Upload) -> None:
        """Record that a step created its resource, and whether it uses those before it."""
        self.unused.append(step)
        if isinstance(step, Step) and step.uses_earlier:
            self.in_use += self.unused
            self.unused = []

    def release(self) -> None:
        """Record that the step that used the resources was rolled back."""
        self.unused = self.in_use + self.unused
        self.in_use = []


class Executor:
    """Applies plans. Calls `report` for every step; `poll_s` is the polling interval."""

    def __init__(self, aws: Aws, report: Report, poll_s: float = POLL_S) -> None:
        self._aws = aws
        self._report = report
        self._poll_s = poll_s
        self._policy_arns: dict[str, str] = {}

    def apply(self, plan: Plan) -> None:
        """Execute every step. Raises DeployError, after undoing the steps of this call."""
        created = _CreatedResources()
        for step in plan.steps:
            try:
                self._report(step.resource, step.title)
                self._carry_out(step, created)
            except (DeployError, KeyboardInterrupt) as error:
                self._report(step.resource, "failed")
                raise self._undone(created, error) from error

    def _carry_out(self, step: Step | Upload, created: _CreatedResources) -> None:
        if isinstance(step, Upload):
            if self._upload(step):
                created.add(step)
            return
        params = self._filled(step.params)
        try:
            result = self._aws.call(step.service, step.operation, **params)
        except NotFound:
            if not step.may_be_missing:
                raise
            return
        # Only now: a refused call created nothing, and the name may be another deployment's.
        created.add(step)
        if "PolicyARN" in result:
            self._policy_arns[step.params["PolicyName"]] = result["PolicyARN"]
        if step.wait:
            self._settle(step, step.wait, created)

    def _settle(self, step: Step, wait: Wait, created: _CreatedResources) -> None:
        """Wait for a step. One that was rolled back does not use the resources before it."""
        try:
            self._wait(step.resource, step.service, wait)
        except StillBusy:
            raise
        except EndpointFailed:
            if step.uses_earlier:
                created.release()
            raise

    def _wait(self, resource: str, service: str, wait: Wait) -> None:
        deadline = time.monotonic() + wait.timeout_s
        last_status = ""
        while True:
            try:
                record = self._aws.call(service, wait.operation, **wait.params)
            except NotFound:
                if wait.done:
                    raise
                return
            status = str(record[wait.field])
            if status == wait.done:
                if any(_field(record, key) != value for key, value in wait.expects.items()):
                    reason = str(record.get(wait.reason, "no reason given"))
                    raise EndpointFailed(f"{resource} was rolled back: {reason}")
                return
            if status in wait.failed:
                reason = str(record.get(wait.reason, "no reason given"))
                raise EndpointFailed(f"{resource} failed: {reason}")
            if status != last_status:
                self._report(resource, status.lower())
                last_status = status
            if time.monotonic() > deadline:
                raise StillBusy(f"{resource} is still {status} after {wait.timeout_s} s")
            time.sleep(self._poll_s)

    def _upload(self, step: Upload) -> bool:
        """Upload an archive, unless it is there. Returns whether this call created the object."""
        has_object = self._has_object(step)
        if has_object:
            self._report(step.resource, "is there already")
            return False
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "model.tar.gz"
            pack(step.source, step.code, archive)
            self._report(step.resource, f"uploading {archive.stat().st_size / 1e6:.1f} MB")
            self._aws.upload(archive, step.bucket, step.key)
        return has_object is False

    def _has_object(self, step: Upload) -> bool | None:
        """Whether the archive is there; None if the caller may not know."""
        try:
            self._aws.call("s3", "head_object", Bucket=step.bucket, Key=step.key)
        except NotFound:
            return False
        except AccessDenied:
            return None
        return True

    def _filled(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters with secrets and policy ARNs filled in."""
        return {key: self._fill(value) for key, value in params.items()}

    def _fill(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self._filled(value)
        if isinstance(value, list | tuple):
            return [self._fill(item) for item in value]
        if isinstance(value, Secret):
            secret = self._aws.call("secretsmanager", "get_secret_value", SecretId=value.name)
            return secret["SecretString"]
        if isinstance(value, PolicyArn):
            return self._policy_arns[value.name]
        return value

    def _undone(self, created: _CreatedResources, error: BaseException) -> DeployError:
        """Remove the resources that nothing uses; return the error with what was removed."""
        removed, remains = [], []
        while created.unused:
            step = created.unused.pop()
            if step.undo is None:
                continue
            self._report(step.resource, "removing")
            try:
                self._undo(step, step.undo)
                removed.append(step.resource)
            except NotFound:
                continue
            except AwsError as undo_error:
                remains.append(f"{step.resource} ({undo_error.message})")
                if isinstance(step, Step) and step.uses_earlier:
                    break  # it may still use what the steps before it created
        in_use = [step.resource for step in (*created.in_use, *created.unused) if step.undo]
        return _failure(error, removed, remains, in_use)

    def _undo(self, step: Step | Upload, undo: Undo) -> None:
        service = "s3" if isinstance(step, Upload) else step.service
        self._aws.call(service, undo.operation, **undo.params)


def pack(source: Path, code: Path | None, archive: Path) -> None:
    """Pack the .tar.gz that SageMaker unpacks at /opt/ml/model. Raises ConfigError."""
    if source.is_file() and source.name.endswith(".tar.gz") and code is None:
        archive.write_bytes(source.read_bytes())
        return
    if not source.is_dir():
        raise ConfigError([f"model.data: {source} is not a folder"])
    if code and (code / "__init__.py").exists():
        raise ConfigError([f"model.code: {code} has an __init__.py; it must not be a package"])
    # Weights do not compress; the lowest level keeps packing quick.
    with tarfile.open(archive, "w:gz", compresslevel=1, dereference=True) as tar:
        for path in sorted(source.iterdir()):
            if not (code and path.name == "code"):
                tar.add(path, path.name)
        if code:
            tar.add(code, "code")


def _field(record: Mapping[str, Any], path: str) -> Any:
    value: Any = record
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _failure(
    error: BaseException, removed: list[str], remains: list[str], in_use: list[str]
) -> DeployError:
    if not isinstance(error, DeployError):
        error = Interrupted("interrupted")
    endings = []
    if remains:
        endings.append("what could not be removed: " + "; ".join(remains))
    elif removed and in_use:
        endings.append(f"removed again: {', '.join(removed)}")
    elif removed:
        endings.append("everything that this run made was removed again")
    if in_use:
        endings.append(f"in use by now, so it stays: {', '.join(in_use)}")
    if isinstance(error, ConfigError):
        return ConfigError([*error.problems, *endings])
    return type(error)("\n".join([error.message, *endings]), hint=error.hint)
