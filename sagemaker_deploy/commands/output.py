"""The output of commands: tables and progress for people, JSON for programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sagemaker_deploy.plan.steps import Plan, PolicyArn, Secret, Upload

WIDTH_WITHOUT_TERMINAL = 250


def console() -> Console:
    """Create a console for standard output, as wide as the terminal; no wrapping without one."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    table = Table(*columns, title=title, title_justify="left", show_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console().print(table)


def print_plan(plan: Plan) -> None:
    """Print a plan's steps, facts and warnings."""
    if plan.steps:
        rows = [(number, step.resource, step.title) for number, step in enumerate(plan.steps, 1)]
        print_table(f"Plan for {plan.name}", ("", "What", "Step"), rows)
    else:
        click.echo(f"{plan.name}: nothing to do")
    for fact in plan.facts:
        click.echo(f"  {fact}")
    for warning in plan.warnings:
        click.secho(f"  warning: {warning}", fg="yellow")


def plan_as_data(plan: Plan) -> dict[str, Any]:
    """Convert a plan to JSON values."""
    return {
        "name": plan.name,
        "steps": [_step(step) for step in plan.steps],
        "facts": plan.facts,
        "warnings": plan.warnings,
        "policies": plan.policies,
    }


def _step(step: Any) -> dict[str, Any]:
    fields = {"title": step.title, "resource": step.resource}
    if isinstance(step, Upload):
        return fields | {"service": "s3", "operation": "upload", "source": str(step.source)}
    params = _shown(step.params)
    return fields | {"service": step.service, "operation": step.operation, "params": params}


def _shown(value: Any) -> Any:
    """Replace values that are known only during execution by descriptions."""
    if isinstance(value, Mapping):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    if isinstance(value, Secret):
        return f"<secret {value.name}>"
    return f"<ARN of policy {value.name}>" if isinstance(value, PolicyArn) else value


class Progress:
    """Reports steps as they happen, on standard error, so that --json stays clean."""

    def __call__(self, resource: str, event: str) -> None:
        """Report one event."""
        click.echo(f"{resource}: {event}", err=True)
