"""The service's error responses as data: status, code, message, extra fields.

Codes and statuses are those of botocore's models `sagemaker` and `sagemaker-runtime`; the messages
follow users' reports of the service's errors.
"""

from typing import Any

ACCOUNT = "000000000000"
SHOWN_OF_A_BODY = 2048


class Refusal(Exception):
    """An error response of the service."""

    def __init__(self, status: int, code: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.fields = fields


def validation(message: str) -> Refusal:
    """Build the runtime's error for a bad or unknown parameter."""
    return Refusal(400, "ValidationError", message)


def control_validation(message: str) -> Refusal:
    """Build the control plane's error for a bad or unknown parameter."""
    return Refusal(400, "ValidationException", message)


def no_endpoint(name: str) -> Refusal:
    """Build the error for an endpoint that does not exist."""
    return validation(f"Endpoint {name} of account {ACCOUNT} not found.")


def too_large(limit_bytes: int) -> Refusal:
    """Build the error for a body over the limit; the service's front end sends it without code."""
    return Refusal(413, "", f"HTTP content length exceeded {limit_bytes} bytes.")


def unsigned() -> Refusal:
    """Build the error for a missing SigV4 signature."""
    return Refusal(403, "MissingAuthenticationTokenException", "Missing Authentication Token")


def model_error(endpoint: str, container: str, status: int, body: bytes, region: str) -> Refusal:
    """Build the error for a container's 4xx or 5xx: HTTP 424 with its status and body's start."""
    side = "client" if 400 <= status < 500 else "server"
    text = body[:SHOWN_OF_A_BODY].decode(errors="replace")
    return _model_error(endpoint, container, status, side, text, region)


def timed_out(endpoint: str, container: str, region: str) -> Refusal:
    """Build the error for a container that did not respond in time."""
    text = (
        f"Your invocation timed out while waiting for a response from container {container}. "
        "Review the latency metrics for each container in Amazon CloudWatch, resolve the issue, "
        "and try again."
    )
    return _model_error(endpoint, container, 0, "server", text, region)


def unreachable(endpoint: str, container: str, region: str) -> Refusal:
    """Build the error for a container that refused or broke the connection."""
    text = f"Amazon SageMaker could not get a response from the {endpoint} endpoint."
    return _model_error(endpoint, container, 0, "server", text, region)


def _model_error(
    endpoint: str, container: str, status: int, side: str, text: str, region: str
) -> Refusal:
    group = f"/aws/sagemaker/Endpoints/{endpoint}"
    message = (
        f'Received {side} error ({status}) from {container} with message "{text}". See '
        f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}"
        f"#logEventViewer:group={group} in account {ACCOUNT} for more information."
    )
    return Refusal(
        424,
        "ModelError",
        message,
        ErrorCode=f"{side.upper()}_ERROR_FROM_MODEL",
        OriginalStatusCode=status,
        OriginalMessage=text,
        LogStreamArn=f"arn:aws:logs:{region}:{ACCOUNT}:log-group:{group}",
    )
