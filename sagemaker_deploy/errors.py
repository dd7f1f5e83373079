"""Every error that a command reports in one line, divided by cause.

DeployError
├── ConfigError       invalid configuration or flags; lists every problem
├── MissingTool       a library or program that this command needs is not installed
├── NotFound          the resource of the command does not exist
├── AwsError          AWS refused; names a remedy if it is known
│   ├── AccessDenied
│   ├── QuotaExceeded
│   └── Throttled
├── EndpointFailed    an endpoint, component or job did not come up
│   └── StillBusy     it has not settled in time, and may still come up
├── InvocationFailed  the endpoint answered with an error
└── Interrupted       Ctrl-C; resources created by this run are removed

Each class has its own exit code, so that scripts can tell them apart.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

NONE: Mapping[str, Any] = {}


class DeployError(Exception):
    """Base class of all errors; never raised itself."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(DeployError):
    """Invalid configuration. `problems` has one line for each."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class MissingTool(DeployError):
    """A library or program is not installed."""

    exit_code = 3


class NotFound(DeployError):
    """The resource of a command does not exist."""

    exit_code = 4


class AwsError(DeployError):
    """AWS refused a call."""

    exit_code = 5

    def __init__(
        self, message: str, *, hint: str = "", code: str = "", fields: Mapping[str, Any] = NONE
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.fields = fields  # the whole error response


class AccessDenied(AwsError):
    """The caller's credentials do not allow this."""


class QuotaExceeded(AwsError):
    """An account quota is exceeded."""


class Throttled(AwsError):
    """AWS throttled the call, and all retries are used up."""


class EndpointFailed(DeployError):
    """An endpoint, component or job did not come up."""

    exit_code = 6


class StillBusy(EndpointFailed):
    """An endpoint, component or job has not settled within the time that the plan allows."""


class InvocationFailed(DeployError):
    """The endpoint answered with an error."""

    exit_code = 7


class Interrupted(DeployError):
    """Ctrl-C while a plan was executed."""

    exit_code = 130
