"""Which running requests belong to the current HTTP request."""

from flask import g

from container.frontend.generation.running_request import RunningRequest


def track(running: list[RunningRequest]) -> None:
    """Remember what the current HTTP request has running."""
    if "running" not in g:
        g.running = []
    g.running.extend(running)


def tracked() -> list[RunningRequest]:
    """What the current HTTP request has running."""
    running_requests: list[RunningRequest] = g.get("running", [])
    return running_requests
