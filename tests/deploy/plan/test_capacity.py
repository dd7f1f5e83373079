"""Schedules, scale-in, pauses: fewer machines while no requests come."""

from dataclasses import replace
from typing import Any

import pytest

from sagemaker_deploy import config as configuration
from sagemaker_deploy import service_model
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.plan.capacity import pause, scaling, schedules
from sagemaker_deploy.plan.capacity.scaling import Registered
from sagemaker_deploy.plan.steps import Step
from sagemaker_deploy.plan.variants import production
from tests.deploy.plan.cases import BASE, CASES, COMPONENT, SCHEDULED

TARGET = scaling.where("inference-component/chat-model", scaling.COMPONENT_DIMENSION)


def _config(changes: dict[str, Any]) -> configuration.Config:
    return configuration.parse(BASE | changes)


def _check(step: Step) -> None:
    action = "".join(word.capitalize() for word in step.operation.split("_"))
    service_model.check_input(step.service, action, step.params)


def test_a_schedule_sets_limits_at_its_time_in_its_zone() -> None:
    day, night = schedules.steps(_config(CASES["scheduled"]))
    assert day.params["ScheduledActionName"] == "chat-day"
    assert day.params["Schedule"] == "cron(0 7 ? * MON-FRI *)"
    assert day.params["Timezone"] == "Europe/Berlin"
    assert day.params["ScalableTargetAction"] == {"MinCapacity": 2, "MaxCapacity": 8}
    assert night.params["ScalableTargetAction"] == {"MaxCapacity": 1}


def test_known_schedules_need_no_step_and_others_are_deleted() -> None:
    config = _config(CASES["scheduled"])
    known = {step.params["ScheduledActionName"]: step.params for step in schedules.steps(config)}
    assert schedules.steps(config, Registered(schedules=known)) == []
    known["chat-weekend"] = {"ScheduledActionName": "chat-weekend"}
    [removal] = schedules.steps(config, Registered(schedules=known))
    assert removal.operation == "delete_scheduled_action"
    assert removal.params["ScheduledActionName"] == "chat-weekend"
    known = {"other-night": {"ScheduledActionName": "other-night"}}
    operations = [step.operation for step in schedules.steps(config, Registered(schedules=known))]
    assert operations == ["put_scheduled_action"] * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"timezone": None},
        {"schedules": {"day": {"at": "cron(0 7 ? * MON-FRI *)", "min": 2},
                       "night": SCHEDULED["schedules"]["night"]}},
    ],
)  # fmt: skip
def test_a_key_removed_from_a_schedule_is_a_change(changes: dict[str, Any]) -> None:
    before = schedules.steps(_config(CASES["scheduled"]))
    known = {step.params["ScheduledActionName"]: step.params for step in before}
    steps = schedules.steps(_config({"scaling": SCHEDULED | changes}), Registered(schedules=known))
    assert steps
    assert steps[0].undo
    assert steps[0].undo.params == before[0].params
    if "timezone" in changes:
        assert steps[0].params["Timezone"] == "UTC"
    else:
        assert steps[0].params["ScalableTargetAction"] == {"MinCapacity": 2}


def test_scaling_of_which_nothing_is_known_is_not_undone() -> None:
    config = _config(CASES["scheduled component"])
    unknown = Registered(is_known=False)
    steps = scaling.steps(config, unknown) + schedules.steps(config, unknown)
    assert [step.undo for step in steps] == [None] * len(steps)


def test_the_paused_config_comes_back_not_the_newest() -> None:
    early, late = "2026-11-29T10:00:00.000000+00:00", "2026-11-30T10:00:00.000000+00:00"
    tags = {"chat-1": {pause.PAUSED: late}, "chat-2": {pause.PAUSED: early}, "chat-3": {}}
    assert pause.paused_config(tags) == "chat-1"
    assert pause.paused_config({"chat-1": {}}) == "chat-1"
    assert pause.paused_config({"chat-1": {}, "chat-2": {}}) is None
    assert pause.paused_config({}) is None
    _check(
        pause.remember(
            "chat", "chat-1", "arn:aws:sagemaker:us-east-1:000000000000:endpoint-config/x", late
        )
    )


def test_a_night_at_zero_is_woken_by_the_alarm() -> None:
    planned = scaling.steps(_config(CASES["scheduled component"]))
    assert "NoCapacityInvocationFailures" in str(planned[-1].params)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"at": "7 o'clock", "min": 1}, "scaling.schedules.x.at"),
        ({"at": "cron(0 7 * * ? *)"}, "scaling.schedules.x: give min, max or both"),
        ({"at": "cron(0 7 * * ? *)", "min": 3, "max": 2}, "x.max: 2 is less than its min, 3"),
        ({"at": "cron(0 7 * * ? *)", "min": 0}, "needs `component` or `asynchronous`"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(schedule: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _config({"scaling": SCHEDULED | {"schedules": {"x": schedule}}})
    assert words in "\n".join(caught.value.problems)


def test_idle_instances_of_components_are_released_down_to_none() -> None:
    [managed] = [
        production(_config(CASES["idle release"]), "chat-1")["ManagedInstanceScaling"],
    ]
    assert managed["MinInstanceCount"] == 0
    assert managed["ScaleInPolicy"] == {"Strategy": "IDLE_RELEASE", "CooldownInMinutes": 30}
    assert "ScaleInPolicy" not in production(_config(COMPONENT), "x")["ManagedInstanceScaling"]
    most = production(_config(CASES["scheduled component"] | {}), "x")["ManagedInstanceScaling"]
    assert most["MaxInstanceCount"] == 4
    scheduled = _config(COMPONENT | {"scaling": SCHEDULED})
    assert production(scheduled, "x")["ManagedInstanceScaling"]["MaxInstanceCount"] == 8


def test_a_pause_suspends_scaling_before_it_takes_the_copies() -> None:
    suspended, copies = pause.pause_components(["chat-model"], [TARGET])
    assert suspended.params["SuspendedState"]["ScheduledScalingSuspended"] is True
    assert "MinCapacity" not in suspended.params
    assert copies.params["DesiredRuntimeConfig"] == {"CopyCount": 0}
    copies, resumed = pause.resume_components({"chat-model": 2}, [TARGET])
    assert copies.params["DesiredRuntimeConfig"] == {"CopyCount": 2}
    assert resumed.params["SuspendedState"]["ScheduledScalingSuspended"] is False
    assert suspended.undo
    assert suspended.undo.params == resumed.params


@pytest.mark.parametrize(
    "steps",
    [
        pause.pause_components(["chat-model"], [TARGET]),
        pause.pause_instances("chat", [TARGET]),
        pause.resume_instances("chat", 1, [TARGET]),
        [pause.delete_endpoint("chat"), pause.create_endpoint("chat", "chat-1")],
        schedules.steps(_config(CASES["scheduled"])),
    ],
)
def test_every_call_is_one_that_the_service_would_accept(steps: list[Step]) -> None:
    for step in steps:
        _check(step)
        if step.undo:
            _check(replace(step, operation=step.undo.operation, params=step.undo.params))
