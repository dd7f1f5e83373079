"""Reads the evidence about an endpoint from AWS; all calls are read-only."""

from collections.abc import Iterator, Mapping
from typing import Any

from sagemaker_deploy import account
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.diagnosis.diagnose import DEFAULT_START_S
from sagemaker_deploy.diagnosis.evidence import Evidence
from sagemaker_deploy.errors import AwsError, DeployError, NotFound
from sagemaker_deploy.plan.requests import COMPONENT_LOGS, ENDPOINT_LOGS

STREAMS, LINES_EACH = 3, 300
START_TIMEOUT = "ContainerStartupHealthCheckTimeoutInSeconds"


def gather(aws: Aws, name: str) -> Evidence:
    """Collect reasons, events and the end of the log. Raises NotFound if there is nothing."""
    endpoint = account.describe_endpoint(aws, name) or {}
    described = account.components(aws, name) if endpoint else []
    groups = [ENDPOINT_LOGS + name]
    groups += [COMPONENT_LOGS + each["InferenceComponentName"] for each in described]
    log, has_log = read_logs(aws, groups)
    if not endpoint and not log:
        raise NotFound(
            f"endpoint {name} does not exist in {aws.region} and has left no log",
            hint="check the name and --region",
        )
    failed = [each for each in described if each["InferenceComponentStatus"] == "Failed"]
    status = "Failed" if failed else str(endpoint.get("EndpointStatus", "gone"))
    reasons = [*_reasons(endpoint), *(str(each.get("FailureReason", "")) for each in failed)]
    events = _failed_activities(aws, name, described)
    known = tuple(dict.fromkeys(reason for reason in (*reasons, *events) if reason))
    return Evidence(name, status, known, log, has_log)


def start_timeout_s(aws: Aws, name: str) -> int:
    """Return how long the endpoint's container may take to start."""
    try:
        endpoint = account.describe_endpoint(aws, name) or {}
        config = aws.call(
            "sagemaker",
            "describe_endpoint_config",
            EndpointConfigName=endpoint["EndpointConfigName"],
        )
        starts = [config["ProductionVariants"][0]]
        described = account.components(aws, name)
    except (DeployError, LookupError):
        return DEFAULT_START_S
    # A component's copies start by themselves, in the time that it names.
    starts += [each.get("Specification", {}).get("StartupParameters", {}) for each in described]
    return max(each.get(START_TIMEOUT, 0) for each in starts) or DEFAULT_START_S


def read_logs(aws: Aws, groups: list[str]) -> tuple[tuple[str, ...], bool | None]:
    """Read the ends of the last streams, oldest line first, and whether there is any log.

    The second value is None if the log may not be read.
    """
    lines: list[tuple[int, str]] = []
    has_log: bool | None = False
    for group in groups:
        try:
            lines += _stream_ends(aws, group)
        except NotFound:
            continue
        except AwsError:
            has_log = None
    texts = tuple(text for _, text in sorted(lines, key=lambda line: line[0]))
    return texts, True if texts else has_log


def _stream_ends(aws: Aws, group: str) -> Iterator[tuple[int, str]]:
    streams = aws.call(
        "logs",
        "describe_log_streams",
        logGroupName=group,
        orderBy="LastEventTime",
        descending=True,
        limit=STREAMS,
    )
    for stream in streams["logStreams"]:
        page = aws.call(
            "logs",
            "get_log_events",
            logGroupName=group,
            logStreamName=stream["logStreamName"],
            limit=LINES_EACH,
            startFromHead=False,
        )
        yield from ((event["timestamp"], event["message"]) for event in page["events"])


def _reasons(endpoint: Mapping[str, Any]) -> Iterator[str]:
    yield str(endpoint.get("FailureReason", ""))
    pending = endpoint.get("PendingDeploymentSummary", {}).get("ProductionVariants", [])
    for variant in [*endpoint.get("ProductionVariants", []), *pending]:
        for status in variant.get("VariantStatus", []):
            yield str(status.get("StatusMessage", ""))


def _failed_activities(aws: Aws, name: str, components: list[dict[str, Any]]) -> Iterator[str]:
    resources = [f"endpoint/{name}/variant/AllTraffic"]
    resources += [f"inference-component/{each['InferenceComponentName']}" for each in components]
    for resource in resources:
        try:
            activities = aws.call(
                "application-autoscaling",
                "describe_scaling_activities",
                ServiceNamespace="sagemaker",
                ResourceId=resource,
                MaxResults=1,  # an older failure has been overcome
            )["ScalingActivities"]
        except AwsError:  # no permission, or an imitation of AWS without this call
            return
        for activity in activities:
            if activity["StatusCode"] == "Failed":
                yield str(activity.get("StatusMessage", activity.get("Description", "")))
