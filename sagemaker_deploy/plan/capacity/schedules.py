"""Plans scaling by the clock. Pure.

A scheduled action sets other limits of a scalable target from a moment on, until the next one.
"""

from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan.capacity.scaling import (
    NOTHING,
    SERVICE,
    Registered,
    Target,
    change,
    target_of,
)
from sagemaker_deploy.plan.steps import Params, Step, Undo
from sagemaker_deploy.sections import Schedule


def steps(config: Config, registered: Registered = NOTHING) -> list[Step]:
    """Plan the schedules of `scaling`; those that the file no longer has are deleted.

    Scheduled actions with names of another form are other people's, and stay.
    """
    if config.scaling is None:
        return []
    target = target_of(config)
    timezone = config.scaling.timezone
    planned = {
        schedule_name(config.name, name): _action(target, name, schedule, timezone)
        for name, schedule in config.scaling.schedules.items()
    }
    known = registered.schedules
    is_known = registered.is_known
    changes = [change(step, known.get(name), is_known=is_known) for name, step in planned.items()]
    own = schedule_name(config.name, "")
    removed = [
        _removal(target, name)
        for name in sorted(known.keys() - planned.keys())
        if name.startswith(own)
    ]
    return [step for step in changes if step] + removed


def schedule_name(deployment: str, name: str) -> str:
    """Return the name of a scheduled action."""
    return f"{deployment}-{name}"


def _action(target: Target, name: str, schedule: Schedule, timezone: str | None) -> Step:
    limits = {"MinCapacity": schedule.min, "MaxCapacity": schedule.max}
    action = {key: value for key, value in limits.items() if value is not None}
    full_name = schedule_name(target.endpoint, name)
    params: dict[str, Any] = {
        **target.where(),
        "ScheduledActionName": full_name,
        "Schedule": schedule.at,
        "ScalableTargetAction": action,
    }
    if timezone or not schedule.at.startswith("rate("):
        params["Timezone"] = timezone or "UTC"  # sent, so that a zone removed from the file goes
    words = " and ".join(f"{key[:3].lower()} {value}" for key, value in action.items())
    return Step(
        f"set {words} at {schedule.at}",
        f"schedule {full_name}",
        SERVICE,
        "put_scheduled_action",
        params,
        undo=Undo("delete_scheduled_action", _where_action(target, full_name)),
    )


def _removal(target: Target, full_name: str) -> Step:
    return Step(
        "delete a schedule that the file no longer has",
        f"schedule {full_name}",
        SERVICE,
        "delete_scheduled_action",
        _where_action(target, full_name),
        may_be_missing=True,
    )


def _where_action(target: Target, full_name: str) -> Params:
    return {**target.where(), "ScheduledActionName": full_name}
