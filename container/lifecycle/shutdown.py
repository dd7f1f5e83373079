"""The end of the container: one schedule from the first signal to the last exit.

    signal            drain_until           kill_at              end_at
      |  requests finish  |  backends exit     |  gunicorn exits    |
      |                   |                    |                    +- the supervisor exits
      |                   |                    +- all remaining backends are killed at once
      |                   +- backends fail the remaining requests

Every wait ends at one of these times, however many children hang.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from container.lifecycle.child import Child

log = logging.getLogger(__name__)

# SageMaker kills the container 30 s after SIGTERM. With the default drain time of 25 s the last
# process has left after this many seconds; a test adds up the parts.
STOP_BUDGET_S = 28.0
# For backends to fail the requests that are left, send the last messages and exit.
BACKENDS_EXIT_S = 1.25
# For gunicorn to send the last bytes and exit, if the backends needed all of their time.
FRONTENDS_EXIT_S = 1.25
# For gunicorn if time is left; its own graceful_timeout is 2 s.
FRONTENDS_GRACE_S = 3.0
# For the kernel to end killed processes.
REAP_S = 0.5


@dataclass(frozen=True, slots=True)
class StopSchedule:
    """The (monotonic) times by which the parts of the container must have exited."""

    drain_until: float
    kill_at: float
    end_at: float

    @classmethod
    def starting_at(cls, now: float, drain_s: float) -> "StopSchedule":
        """Return the schedule of a stop that begins now."""
        drain_until = now + drain_s
        kill_at = drain_until + BACKENDS_EXIT_S
        return cls(drain_until, kill_at, kill_at + FRONTENDS_EXIT_S + REAP_S)


def drain(groups: Sequence[Sequence[Child]], schedule: StopSchedule) -> None:
    """Let backends finish their requests and exit, group by group, until `kill_at`.

    A group that is still busy at `drain_until` does not hold up the next one.
    """
    for children in groups:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(schedule.drain_until)
    for child in (child for children in groups for child in children):
        if not child.wait(schedule.kill_at):
            log.error("%s: still running after the drain, killed", child.name)


def kill(children: Sequence[Child]) -> None:
    """Kill all remaining children, all at once."""
    for child in children:
        child.kill()
    until = time.monotonic() + REAP_S
    for child in children:
        if not child.wait(until):
            log.error("%s: running %.1f s after SIGKILL; exiting without it", child.name, REAP_S)


def stop_frontends(frontends: Child, end_at: float) -> None:
    """Let gunicorn send the last bytes and exit; kill it before `end_at` if it does not."""
    frontends.terminate()
    if not frontends.wait(min(end_at - REAP_S, time.monotonic() + FRONTENDS_GRACE_S)):
        log.error("%s: still running after SIGTERM, killed", frontends.name)
    kill([frontends])
