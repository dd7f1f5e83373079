"""Plans CloudWatch alarms on a deployment's errors and latency, and a dashboard of it. Pure.

Errors are the mean of SageMaker's metric, which is 1 for each answer of 5xx and 0 for others.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan.capacity.scaling import change
from sagemaker_deploy.plan.requests import TAG, TOKEN_NAMESPACE, component_name, own_tag, tags
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
    """The account's alarms and dashboard that have the names of one deployment's.

    An alarm has its `Tags` if they could be read. `unknown` has the names of resources that could
    not be read: they may exist.
    """

    alarms: Mapping[str, Params] = field(default_factory=dict)  # by name
    dashboard: str | None = None
    unknown: frozenset[str] = frozenset()


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
    """Plan the alarms, and delete own ones that the configuration no longer names."""
    changes = [
        change(step, watched.alarms.get(name), is_known=name not in watched.unknown)
        for step in _alarms(config)
        for name in [step.params["AlarmName"]]
    ]
    own = {name for name, alarm in watched.alarms.items() if is_own(alarm, config.name)}
    removed = sorted(own - {*alarm_names(config), *config.update.alarms})
    return [*(step for step in changes if step), *([_removal(removed)] if removed else [])]


def problems(config: Config, watched: Watched = NOTHING) -> list[str]:
    """Find alarms of others in the place of the deployment's own."""
    return [
        f"monitoring: the alarm {name} exists and has no tag {TAG}={config.name}, so it is not "
        "this deployment's; rename it or tag it so, or leave out `monitoring`"
        for name in alarm_names(config)
        if "Tags" in watched.alarms.get(name, {}) and not is_own(watched.alarms[name], config.name)
    ]


def is_own(alarm: Params, deployment: str) -> bool:
    """Whether an alarm carries the deployment's tag."""
    return own_tag(deployment) in alarm.get("Tags", [])


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
            if watched.dashboard or name in watched.unknown
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
    topics = [settings.topic] if settings.topic else []
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
        # Empty ones are sent, too, so that a topic removed from the file goes.
        "AlarmActions": [*topics],
        "OKActions": [*topics],  # a copy: YAML would write one list as an alias
        "Tags": tags(config),
    }
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
    region = {"region": config.region} if config.region else {}
    widgets = [
        {
            "type": "metric",
            "x": position % 3 * WIDTH,
            "y": position // 3 * HEIGHT,
            "width": WIDTH,
            "height": HEIGHT,
            "properties": {"title": title, "period": PERIOD_S, "view": "timeSeries"}
            | graph
            | region,
        }
        for position, (title, graph) in enumerate(_graphs(config).items())
    ]
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
