"""`pause` and `resume` on the local endpoint: nothing runs meanwhile, and all comes back."""

from pathlib import Path
from typing import Any

import boto3
import yaml

from tests.sdk.aws_account import BUCKET
from tests.sdk.commands.command_line import run_command
from tests.support.aws.local_sagemaker import Local

POLL = ("--poll", "0.1")


def _deploy(account: dict[str, str], name: str, **changes: Any) -> None:
    values = {"name": name, "instance_type": "ml.c7i.2xlarge", "region": "us-east-1",
              "model": {"id": "a/b"}} | account  # fmt: skip
    Path("deploy.yaml").write_text(yaml.safe_dump(values | changes))
    run_command("deploy", "--yes", *POLL)


def test_a_component_goes_to_zero_and_comes_back(account: dict[str, str], fake: Local) -> None:
    _deploy(account, "nap", component={"copies": 2, "scale_in": {}})
    paused = run_command("pause", "nap", "--yes", *POLL).stdout
    assert "scale to 0 copies" in paused
    record = fake.sagemaker.describe_inference_component(InferenceComponentName="nap-model")
    assert record["RuntimeConfig"]["DesiredCopyCount"] == 0
    assert "no capacity" in run_command("invoke", "nap", "Hello", expect=5).stderr
    run_command("resume", "nap", "--yes", *POLL)
    record = fake.sagemaker.describe_inference_component(InferenceComponentName="nap-model")
    assert record["RuntimeConfig"]["DesiredCopyCount"] == 2
    run_command("invoke", "nap", "Hello")
    run_command("delete", "nap", "--yes", *POLL)


def test_a_real_time_endpoint_comes_back_with_its_scaling(
    account: dict[str, str], fake: Local
) -> None:
    scaling = {
        "min": 1, "max": 3, "target_concurrency": 4,
        "schedules": {"night": {"at": "cron(0 20 * * ? *)", "max": 1}},
    }  # fmt: skip
    _deploy(account, "rest", scaling=scaling)
    actions = boto3.client("application-autoscaling")
    [action] = actions.describe_scheduled_actions(ServiceNamespace="sagemaker")["ScheduledActions"]
    assert action["ScheduledActionName"] == "rest-night"
    assert "nothing to do" in run_command("plan").stdout
    before = fake.sagemaker.describe_endpoint(EndpointName="rest")["EndpointConfigName"]
    assert "its scaling goes, too" in run_command("pause", "rest", "--yes", *POLL).stdout
    assert "may be paused already" in run_command("pause", "rest", "--yes", expect=4).stderr
    run_command("resume", "rest", "--yes", *POLL)
    record = fake.sagemaker.describe_endpoint(EndpointName="rest")
    assert record["EndpointConfigName"] == before
    targets = actions.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert [target["MaxCapacity"] for target in targets] == [3]
    assert "nothing to do" in run_command("plan").stdout
    assert "is not paused" in run_command("resume", "rest", "--yes", expect=2).stderr
    run_command("delete", "rest", "--yes", *POLL)


def test_resume_brings_back_what_was_paused_and_spares_what_runs(
    account: dict[str, str], fake: Local
) -> None:
    _deploy(account, "back")
    first = fake.sagemaker.describe_endpoint(EndpointName="back")["EndpointConfigName"]
    run_command("deploy", "--yes", "--set", "instance_count=2", *POLL)
    run_command("deploy", "--yes", *POLL)
    run_command("pause", "back", "--yes", *POLL)
    run_command("resume", "back", "--yes", *POLL)
    again = fake.sagemaker.describe_endpoint(EndpointName="back")["EndpointConfigName"]
    assert again == first
    run_command("delete", "back", "--yes", *POLL)
    _deploy(account, "busy", component={"copies": 2})
    assert "is not paused" in run_command("resume", "busy", "--yes", expect=2).stderr
    run_command("delete", "busy", "--yes", *POLL)


def test_an_alarm_of_others_outlives_the_deployment(account: dict[str, str], fake: Local) -> None:
    cloudwatch = boto3.client("cloudwatch")
    theirs = {"Namespace": "Theirs", "MetricName": "Errors", "Statistic": "Sum", "Period": 60,
              "EvaluationPeriods": 1, "Threshold": 1.0,
              "ComparisonOperator": "GreaterThanThreshold"}  # fmt: skip
    cloudwatch.put_metric_alarm(AlarmName="lone-errors", **theirs)
    _deploy(account, "lone", update={"alarms": ["lone-errors"]})
    run_command("delete", "lone", "--yes", *POLL)
    found = cloudwatch.describe_alarms(AlarmNames=["lone-errors"])["MetricAlarms"]
    assert len(found) == 1
    cloudwatch.delete_alarms(AlarmNames=["lone-errors"])


def test_an_asynchronous_endpoint_goes_to_zero_instances(
    account: dict[str, str], fake: Local
) -> None:
    _deploy(account, "later2", asynchronous={"output": f"s3://{BUCKET}/later2"})
    run_command("pause", "later2", "--yes", *POLL)
    described = fake.sagemaker.describe_endpoint(EndpointName="later2")
    assert described["ProductionVariants"][0]["DesiredInstanceCount"] == 0
    run_command("resume", "later2", "--yes", *POLL)
    described = fake.sagemaker.describe_endpoint(EndpointName="later2")
    assert described["ProductionVariants"][0]["DesiredInstanceCount"] == 1
    run_command("delete", "later2", "--yes", *POLL)


def test_what_costs_nothing_while_idle_is_not_paused(account: dict[str, str], fake: Local) -> None:
    values = {"serverless": {}, "instance_type": None}
    _deploy(account, "free", **values)
    assert "costs nothing while idle" in run_command("pause", "free", "--yes", expect=2).stderr
    run_command("delete", "free", "--yes", *POLL)


def test_alarms_and_the_dashboard_go_with_the_deployment(
    account: dict[str, str], fake: Local
) -> None:
    _deploy(account, "seen", monitoring={"latency_s": 20})
    cloudwatch = boto3.client("cloudwatch")
    names = [alarm["AlarmName"] for alarm in cloudwatch.describe_alarms()["MetricAlarms"]]
    assert {"seen-errors", "seen-latency"} <= set(names)
    assert "nothing to do" in run_command("plan").stdout
    run_command("deploy", "--yes", "--set", "monitoring.latency_s=null", *POLL)
    names = [alarm["AlarmName"] for alarm in cloudwatch.describe_alarms()["MetricAlarms"]]
    assert "seen-latency" not in names
    run_command("delete", "seen", "--yes", *POLL)
    names = [alarm["AlarmName"] for alarm in cloudwatch.describe_alarms()["MetricAlarms"]]
    assert "seen-errors" not in names
    assert cloudwatch.list_dashboards()["DashboardEntries"] == []


def test_traffic_is_shared_among_variants(account: dict[str, str], fake: Local) -> None:
    _deploy(account, "both", weight=9, variants={"new": {"env": {"NEW": "1"}, "weight": 1}})
    run_command("scale", "both", "--weights", "AllTraffic=0,new=1", *POLL)
    shares = {
        each["VariantName"]: each["DesiredWeight"]
        for each in fake.sagemaker.describe_endpoint(EndpointName="both")["ProductionVariants"]
    }
    assert shares == {"AllTraffic": 0, "new": 1}
    assert '"NEW": "1"' in run_command("invoke", "both", "Hello").stdout
    wrong = run_command("scale", "both", "--weights", "nobody=1", *POLL, expect=2).stderr
    assert "both has AllTraffic, new" in wrong
    run_command("delete", "both", "--yes", *POLL)
