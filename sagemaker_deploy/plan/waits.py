"""The statuses of endpoints and components for which steps wait. Pure."""

from collections.abc import Mapping

from sagemaker_deploy.plan.steps import Wait

START_TIMEOUT_S = 5400
CHANGE_TIMEOUT_S = 3600
NOTHING_EXPECTED: Mapping[str, str] = {}


def endpoint_in_service(
    name: str,
    timeout_s: int = CHANGE_TIMEOUT_S,
    expects: Mapping[str, str] = NOTHING_EXPECTED,
) -> Wait:
    """Wait until an endpoint is in service; with other values than expected, it was rolled back."""
    where = {"EndpointName": name}
    return Wait(
        "describe_endpoint", where, "EndpointStatus", "InService", ("Failed",),
        timeout_s=timeout_s, expects=expects,
    )  # fmt: skip


def endpoint_deleted(name: str) -> Wait:
    """Wait until an endpoint does not exist."""
    return Wait("describe_endpoint", {"EndpointName": name}, "EndpointStatus", "", ())


def component_in_service(
    name: str,
    timeout_s: int = CHANGE_TIMEOUT_S,
    expects: Mapping[str, str] = NOTHING_EXPECTED,
) -> Wait:
    """Wait until a component is in service; with other values than expected, it was rolled back."""
    where = {"InferenceComponentName": name}
    return Wait(
        "describe_inference_component", where, "InferenceComponentStatus", "InService", ("Failed",),
        timeout_s=timeout_s, expects=expects,
    )  # fmt: skip


def component_deleted(name: str) -> Wait:
    """Wait until a component does not exist."""
    where = {"InferenceComponentName": name}
    return Wait("describe_inference_component", where, "InferenceComponentStatus", "", ())
