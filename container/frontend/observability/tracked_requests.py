"""Which running requests belong to the current HTTP request."""

from flask import g

from container.frontend.generation.running_request import RunningRequest


def note(running: list[RunningRequest]) -> None:
    """Remember what the current HTTP request has running."""
    if "running" not in g:
        g.running = []
    g.running.extend(running)


def noted() -> list[RunningRequest]:
    """What the current HTTP request has running."""
    found: list[RunningRequest] = g.get("running", [])
    return found
