"""Plans CloudWatch alarms on a deployment's errors and latency, and a dashboard of it. Pure.

Errors are the mean of SageMaker's metric, which is 1 for each answer of 5xx and 0 for others.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan.capacity.scaling import change
from sagemaker_deploy.plan.requests import TOKEN_NAMESPACE, component_name
from sagemaker_deploy.plan.steps import Params, Step, Undo
from sagemaker_deploy.plan.variants import VARIANT
from sagemaker_deploy.sections import Monitoring

INVOCATIONS, HOSTS = "AWS/SageMaker", "/aws/sagemaker/Endpoints"
COMPONENTS = "/aws/sagemaker/InferenceComponents"
MICROSECONDS = 1e6
PERIOD_S = 60
WIDTH, HEIGHT = 8, 6  # of a graph, in the dashboard's grid of 24 columns


@dataclass(frozen=True, slots=True)
class Watched:
    """The account's alarms, by name, and dashboard of one deployment."""

    alarms: Mapping[str, Params] = field(default_factory=dict)
    dashboard: str | None = None


NOTHING = Watched()


def alarm_names(config: Config) -> tuple[str, ...]:
    """Return the names of the alarms that a configuration asks for."""
    return tuple(str(step.params["AlarmName"]) for step in _alarms(config))


def rollback_alarms(config: Config) -> tuple[str, ...]:
    """Return the alarms that roll an update back: the named ones, and the deployment's own."""
    is_own = config.monitoring is not None and config.monitoring.rollback
    own = alarm_names(config) if is_own else ()
    return tuple(dict.fromkeys((*config.update.alarms, *own)))


def alarm_steps(config: Config, watched: Watched = NOTHING) -> list[Step]:
    """Plan the alarms, and delete those that the configuration no longer asks for."""
    alarms = _alarms(config)
    changes = [change(step, watched.alarms.get(step.params["AlarmName"])) for step in alarms]
    removed = sorted(watched.alarms.keys() - set(alarm_names(config)))
    return [*(step for step in changes if step), *([_removal(removed)] if removed else [])]


def dashboard_steps(config: Config, watched: Watched = NOTHING) -> list[Step]:
    """Plan the dashboard; it is replaced as a whole."""
    if config.monitoring is None or not config.monitoring.dashboard:
        return []
    body = json.dumps(_dashboard(config))
    if watched.dashboard and json.loads(watched.dashboard) == json.loads(body):
        return []
    name = dashboard_name(config.name)
    return [
        Step(
            "show traffic, errors, latency and machines",
            f"dashboard {name}",
            "cloudwatch",
            "put_dashboard",
            {"DashboardName": name, "DashboardBody": body},
            undo=None
            if watched.dashboard
            else Undo("delete_dashboards", {"DashboardNames": [name]}),
        )
    ]


def dashboard_name(deployment: str) -> str:
    """Return the name of a deployment's dashboard."""
    return f"sagemaker-{deployment}"


def own_alarm_names(deployment: str) -> tuple[str, ...]:
    """Return the names that alarms of a deployment may have."""
    return (f"{deployment}-errors", f"{deployment}-latency")


def _alarms(config: Config) -> list[Step]:
    settings = config.monitoring
    if settings is None:
        return []
    errors, latency = own_alarm_names(config.name)
    steps = []
    if settings.errors_percent is not None:
        metric = {"MetricName": "Invocation5XXErrors", "Statistic": "Average"}
        words = f"ring when {settings.errors_percent:g} % of answers are 5xx"
        steps.append(_alarm(config, settings, errors, words, metric, settings.errors_percent / 100))
    if settings.latency_s is not None:
        metric = {"MetricName": "ModelLatency", "ExtendedStatistic": "p90"}
        words = f"ring when one answer of ten takes longer than {settings.latency_s:g} s"
        threshold = settings.latency_s * MICROSECONDS
        steps.append(_alarm(config, settings, latency, words, metric, threshold))
    return steps


def _alarm(
    config: Config,
    settings: Monitoring,
    name: str,
    title: str,
    metric: Mapping[str, str],
    threshold: float,
) -> Step:
    params: dict[str, Any] = {
        "AlarmName": name,
        "Namespace": INVOCATIONS,
        **metric,
        "Dimensions": [{"Name": key, "Value": text} for key, text in _dimensions(config).items()],
        "Period": PERIOD_S,
        "EvaluationPeriods": 3,
        "DatapointsToAlarm": 2,
        "Threshold": threshold,
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "notBreaching",  # no traffic is no fault
    }
    if settings.topic:
        params |= {"AlarmActions": [settings.topic], "OKActions": [settings.topic]}
    undo = Undo("delete_alarms", {"AlarmNames": [name]})
    return Step(title, f"alarm {name}", "cloudwatch", "put_metric_alarm", params, undo=undo)


def _removal(names: list[str]) -> Step:
    return Step(
        "delete alarms that the file no longer has",
        f"alarms {', '.join(names)}",
        "cloudwatch",
        "delete_alarms",
        {"AlarmNames": names},
        may_be_missing=True,
    )


def _dimensions(config: Config) -> dict[str, str]:
    if config.component:
        return {"InferenceComponentName": component_name(config)}
    return {"EndpointName": config.name, "VariantName": VARIANT}


def _dashboard(config: Config) -> dict[str, Any]:
    graphs = _graphs(config)
    widgets = [
        {
            "type": "metric",
            "x": place % 3 * WIDTH,
            "y": place // 3 * HEIGHT,
            "width": WIDTH,
            "height": HEIGHT,
            "properties": {"title": title, "period": PERIOD_S, "view": "timeSeries"} | graph,
        }
        for place, (title, graph) in enumerate(graphs.items())
    ]
    if config.region:
        for widget in widgets:
            widget["properties"]["region"] = config.region  # type: ignore[index]
    return {"widgets": widgets}


def _graphs(config: Config) -> dict[str, dict[str, Any]]:
    where = [part for pair in _dimensions(config).items() for part in pair]
    latencies = [["AWS/SageMaker", "ModelLatency", *where, {"stat": stat, "label": stat}]
                 for stat in ("p50", "p90", "p99")]  # fmt: skip
    graphs: dict[str, dict[str, Any]] = {
        "Requests": _graph(INVOCATIONS, ("Invocations",), where, "Sum"),
        "Errors": _graph(INVOCATIONS, ("Invocation4XXErrors", "Invocation5XXErrors"), where, "Sum"),
        "Time of an answer, microseconds": {"metrics": latencies},
    }
    if config.asynchronous:
        endpoint = ["EndpointName", config.name]
        graphs["Requests"] = _graph(INVOCATIONS, ("ApproximateBacklogSize",), endpoint, "Maximum")
    if config.metrics and config.metrics.tokens:
        endpoint = ["EndpointName", config.name]
        counts = ("PromptTokens", "CachedTokens", "GeneratedTokens")
        times = ("QueueTime", "TimeToFirstToken", "TimePerToken")
        graphs["Tokens"] = _graph(TOKEN_NAMESPACE, counts, endpoint, "Sum")
        graphs["Times, milliseconds"] = _graph(TOKEN_NAMESPACE, times, endpoint, "p90")
    if config.serverless:
        return graphs
    concurrency = "ConcurrentRequestsPerCopy" if config.component else "ConcurrentRequestsPerModel"
    if not config.asynchronous:
        graphs["Requests at a time"] = _graph(INVOCATIONS, (concurrency,), where, "Maximum")
    machine = ["GPUUtilization", "GPUMemoryUtilization"] if config.has_gpus else ["CPUUtilization"]
    machine.append("MemoryUtilization")
    if config.component:
        names = tuple(f"{name}Normalized" for name in machine)
        graphs["Of what the component reserves, percent"] = _graph(
            COMPONENTS, names, where, "Average"
        )
    else:
        graphs["Machines, percent"] = _graph(HOSTS, tuple(machine), where, "Average")
    return graphs


def _graph(namespace: str, names: tuple[str, ...], where: list[str], stat: str) -> dict[str, Any]:
    return {"metrics": [[namespace, name, *where] for name in names], "stat": stat}
