"""Alarms and the dashboard of a deployment."""

import json
from dataclasses import replace
from typing import Any

import pytest

from sagemaker_deploy import config as configuration
from sagemaker_deploy import service_model
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.plan import monitoring, requests
from sagemaker_deploy.plan.deploy import AccountState, plan
from sagemaker_deploy.plan.monitoring import Watched
from sagemaker_deploy.plan.requests import TAG, endpoint_config
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
    assert alarm["AlarmActions"] == []


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
    named = _config({"update": {"alarms": ["chat-errors"]}})
    [removal] = monitoring.alarm_steps(named, watched)
    assert removal.params == {"AlarmNames": ["chat-latency"]}


@pytest.mark.parametrize("tags", [{"Tags": []}, {}, {"Tags": [{"Key": TAG, "Value": "chat2"}]}])
def test_alarms_of_others_are_neither_deleted_nor_replaced(tags: dict[str, Any]) -> None:
    theirs = {"AlarmName": "chat-errors", "Threshold": 9.0} | tags
    watched = Watched({"chat-errors": theirs})
    assert monitoring.alarm_steps(_config({}), watched) == []
    if "Tags" in tags:
        with pytest.raises(ConfigError, match="chat-errors exists and has no tag"):
            plan(_config(CASES["watched"]), replace(STATE, watched=watched))


def test_what_is_unknown_is_not_undone() -> None:
    names = frozenset([*monitoring.own_alarm_names("chat"), monitoring.dashboard_name("chat")])
    watched = Watched(unknown=names)
    config = _config(CASES["watched"])
    steps = monitoring.alarm_steps(config, watched) + monitoring.dashboard_steps(config, watched)
    assert [step.undo for step in steps] == [None, None, None]
    assert all(step.undo for step in monitoring.alarm_steps(config))


def test_the_undo_of_a_removed_topic_has_the_whole_alarm() -> None:
    config = _config(CASES["watched"])
    known = {
        step.params["AlarmName"]: {**step.params, "AlarmArn": "arn:1", "AlarmDescription": "x"}
        for step in monitoring.alarm_steps(config)
    }
    silent = _config(CASES["watched"] | {"monitoring": {"latency_s": 20}})
    first, _ = monitoring.alarm_steps(silent, Watched(known))
    assert first.params["AlarmActions"] == first.params["OKActions"] == []
    assert first.undo
    assert first.undo.operation == "put_metric_alarm"
    assert first.undo.params["AlarmDescription"] == "x"
    assert len(first.undo.params["AlarmActions"]) == 1
    service_model.check_input("cloudwatch", "PutMetricAlarm", first.undo.params)


def test_role_and_deployer_may_read_rollback_alarms() -> None:
    policies = plan(_config(CASES["watched"]), STATE).policies
    for name, alarms in {"execution": {"others", "chat-errors", "chat-latency"},
                         "deployer": {"others", "chat-errors"}}.items():  # fmt: skip
        readable = {
            resource.rpartition(":")[2]
            for statement in policies[name]["Statement"]
            if "cloudwatch:DescribeAlarms" in statement["Action"]
            for resource in statement["Resource"]
        }
        assert alarms <= readable
    assert "DescribeAlarms" not in str(plan(_config({}), STATE).policies["execution"])


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
