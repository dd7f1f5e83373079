"""Alarms and the dashboard of a deployment."""

import json
from typing import Any

import pytest

from sagemaker_deploy import config as configuration
from sagemaker_deploy import service_model
from sagemaker_deploy.plan import monitoring, requests
from sagemaker_deploy.plan.deploy import AccountState, plan
from sagemaker_deploy.plan.monitoring import Watched
from sagemaker_deploy.plan.requests import endpoint_config
from sagemaker_deploy.plan.steps import Step
from tests.deploy.plan.cases import BASE, CASES, COMPONENT

STATE = AccountState("us-east-1", "000000000000")


def _config(changes: dict[str, Any]) -> configuration.Config:
    merged = {key: value for key, value in (BASE | changes).items() if value is not None}
    return configuration.parse(merged)


def _alarms(changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    steps = monitoring.alarm_steps(_config(changes))
    return {step.params["AlarmName"]: dict(step.params) for step in steps}


def test_errors_and_slow_answers_ring_and_notify() -> None:
    alarms = _alarms(CASES["watched"])
    assert alarms.keys() == {"chat-errors", "chat-latency"}
    assert alarms["chat-errors"]["Threshold"] == 0.05
    assert alarms["chat-latency"]["Threshold"] == 20e6  # microseconds
    assert alarms["chat-latency"]["ExtendedStatistic"] == "p90"
    for params in alarms.values():
        assert (
            params["AlarmActions"]
            == params["OKActions"]
            == ["arn:aws:sns:us-east-1:000000000000:alarms"]
        )
        service_model.check_input("cloudwatch", "PutMetricAlarm", params)


def test_a_component_is_watched_by_its_own_metrics() -> None:
    [alarm] = _alarms(COMPONENT | {"monitoring": {}}).values()
    assert alarm["Dimensions"] == [{"Name": "InferenceComponentName", "Value": "chat-model"}]
    assert "AlarmActions" not in alarm


def test_own_and_named_alarms_roll_an_update_back() -> None:
    config = _config(CASES["watched"])
    assert monitoring.rollback_alarms(config) == ("others", "chat-errors", "chat-latency")
    config = _config(CASES["watched"] | {"monitoring": {"rollback": False}})
    assert monitoring.rollback_alarms(config) == ("others",)
    operations = [step.operation for step in plan(_config(CASES["watched"]), STATE).steps
                  if isinstance(step, Step)]  # fmt: skip
    assert operations.index("put_metric_alarm") < operations.index("create_endpoint")
    assert operations[-1] == "put_dashboard"


def test_known_alarms_need_no_step_and_others_are_deleted() -> None:
    config = _config(CASES["watched"])
    alarms = {step.params["AlarmName"]: step.params for step in monitoring.alarm_steps(config)}
    [shown] = monitoring.dashboard_steps(config)
    watched = Watched(alarms, str(shown.params["DashboardBody"]))
    assert monitoring.alarm_steps(config, watched) == []
    assert monitoring.dashboard_steps(config, watched) == []
    [removal] = monitoring.alarm_steps(_config({}), watched)
    assert removal.params == {"AlarmNames": ["chat-errors", "chat-latency"]}


@pytest.mark.parametrize("case", ["real-time", "serverless", "asynchronous", "component"])
def test_a_dashboard_has_graphs_of_metrics_that_this_kind_has(case: str) -> None:
    [step] = monitoring.dashboard_steps(_config(CASES[case] | {"monitoring": {}}))
    service_model.check_input("cloudwatch", "PutDashboard", step.params)
    widgets = json.loads(step.params["DashboardBody"])["widgets"]
    names = {metric[1] for widget in widgets for metric in widget["properties"]["metrics"]}
    assert {"Invocation5XXErrors", "ModelLatency"} <= names
    assert ("GPUUtilization" in names) == (case in ("real-time", "asynchronous"))
    assert ("GPUUtilizationNormalized" in names) == (case == "component")
    assert ("ApproximateBacklogSize" in names) == (case == "asynchronous")
    places = {(widget["x"], widget["y"]) for widget in widgets}
    assert len(places) == len(widgets)


def test_finer_metrics_are_a_field_of_the_endpoint_config() -> None:
    params = endpoint_config(_config(CASES["measured"]), "chat-1")
    assert params["MetricsConfig"] == {
        "EnableEnhancedMetrics": True,
        "EnableDetailedObservability": True,
        "MetricPublishFrequencyInSeconds": 10,
    }


def test_token_metrics_have_the_endpoints_name_and_graphs() -> None:
    config = _config({"metrics": {"tokens": True}, "monitoring": {}})
    variables = requests.environment(config)
    assert variables["EMF_NAMESPACE"] == "LLM"
    assert variables["EMF_DIMENSIONS"] == "EndpointName=chat"
    assert "MetricsConfig" not in endpoint_config(config, "chat-1")
    [step] = monitoring.dashboard_steps(config)
    widgets = json.loads(step.params["DashboardBody"])["widgets"]
    metrics = [metric for widget in widgets for metric in widget["properties"]["metrics"]]
    assert ["LLM", "GeneratedTokens", "EndpointName", "chat"] in metrics
