"""One fault with sixteen requests in flight: its effect on them, and what remains."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from benchmarks.chaos.load import Kind, Load, kinds
from benchmarks.chaos.processes import by_role, is_alive, num_files
from benchmarks.chaos.watch import Watch
from tests.support.servers import Server

RECOVERED_WITHIN_S = 150.0
STEADY_S = 4.0
# Processes that come with requests that need them.
TRANSIENT = {"fork server of grammars", "grammar process", "template process", "other"}
# Files that a process opens at its first use of something.
FILES_SLACK = 24

# For the processes of one that has died to notice it, on a busy machine.
LEAVE_WITHIN_S = 15.0
# For a process that is stopped to be replaced.
REPLACED_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect of a fault: `undo` takes it back after the requests' end, and not before it has
    been dealt with (`is_over`), if the server deals with it.
    """

    undo: Callable[[], None]
    is_over: Callable[[], bool] = lambda: True


Inject = Callable[[Server], Effect | None]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault; `cuts`: connections end with it, so requests are lost."""

    name: str
    inject: Inject
    cuts: bool = False


@dataclass(slots=True)
class Row:
    """A line of the table; seconds are None where no client saw anything."""

    fault: str
    streams: str
    plain: str
    ping: str
    detect_s: float | None
    again_s: float | None
    lost: int
    duplicated: int
    leaked: str
    left: int
    messages: list[str] = field(default_factory=list)
    may_lose: bool = False

    @property
    def is_sound(self) -> bool:
        """Whether nothing is lost that need not be, there twice, or left."""
        return not ((self.lost and not self.may_lose) or self.duplicated or self.left)


class Trial:
    """Faults in one server, whose answers without faults are measured first."""

    def __init__(
        self,
        server: Server,
        bodies: list[tuple[str, dict[str, object]]],
        make_kinds: Callable[[int], list[Kind]] = kinds,
    ) -> None:
        """`bodies` are the short requests; `make_kinds` takes the tokens of an answer."""
        self._server = server
        self._make_kinds = make_kinds
        self._bodies = bodies
        self._num_tokens = 100
        self._expected: list[str] = []

    def calibrate(self, seconds: float) -> None:
        """Find how many tokens take this long, and the texts without a fault."""
        took = self._measure()
        self._num_tokens = max(100, int(self._num_tokens * seconds / took))
        self._measure()

    def run(self, fault: Fault) -> Row:
        """Do it; return what was seen."""
        server = self._server
        before = by_role(server.process.pid)
        files = num_files(_lasting(before))
        load = Load(server.url, self._make_kinds(self._num_tokens))
        ping, short = Watch(server.url), Watch(server.url, self._bodies)
        ping.start()
        load.start()
        short.start()
        seen = by_role(server.process.pid)
        at = time.monotonic()
        effect = fault.inject(server)
        load.join()
        with contextlib.suppress(psutil.Error):
            if effect is not None:
                self._await_end(effect, at)
                effect.undo()
            self._await_recovery(before, short)
        ping.stop()
        short.stop()
        left = self._left(seen)
        failures = [load.first_failure_at(), ping.first_failure_at(at), short.first_failure_at(at)]
        first = min((each for each in failures if each is not None), default=None)
        return Row(
            fault.name,
            counts(load.outcomes(is_stream=True)),
            counts(load.outcomes(is_stream=False)),
            counts(ping.statuses(at)),
            None if first is None else first - at,
            None if first is None else self._again_s(short, at),
            load.num_lost(),
            load.num_wrong(self._expected),
            self._leaked(files),
            len(left),
            [*load.messages(), *short.failures(at), *(f"left: {name}" for name in left)],
            fault.cuts,
        )

    def _measure(self) -> float:
        began = time.monotonic()
        load = Load(self._server.url, self._make_kinds(self._num_tokens))
        load.start()
        load.join()
        assert load.outcomes(is_stream=True).keys() == {"whole"}, load.messages()
        assert load.outcomes(is_stream=False).keys() == {"whole"}, load.messages()
        self._expected = load.texts()
        return time.monotonic() - began

    def _again_s(self, short: Watch, at: float) -> float | None:
        if self._server.process.poll() is not None:
            return None
        well = short.well_since()
        return None if well is None else max(0.0, well - at)

    def _await_end(self, effect: Effect, at: float) -> None:
        while not effect.is_over() and time.monotonic() - at < REPLACED_WITHIN_S:
            time.sleep(0.1)

    def _await_recovery(self, before: dict[str, list[psutil.Process]], short: Watch) -> None:
        """Wait until all processes are there and requests have been answered for a while."""
        began = time.monotonic()
        whole_at: float | None = None
        while time.monotonic() - began < RECOVERED_WITHIN_S:
            if self._server.process.poll() is not None:
                return
            if whole_at is None and self._is_whole(before):
                whole_at = time.monotonic()
            well = None if whole_at is None else short.well_since(whole_at)
            if well is not None and time.monotonic() - well > STEADY_S:
                return
            time.sleep(0.1)

    def _is_whole(self, before: dict[str, list[psutil.Process]]) -> bool:
        now = by_role(self._server.process.pid)
        return all(
            len(now.get(name, ())) >= len(processes)
            for name, processes in before.items()
            if name not in TRANSIENT
        )

    def _leaked(self, files: int) -> str:
        if self._server.process.poll() is not None:
            return "-"
        leaks = []
        until = time.monotonic() + 10
        while self._server.metric("engine_blocks_used") > 0 and time.monotonic() < until:
            time.sleep(0.2)
        if (blocks := self._server.metric("engine_blocks_used")) > 0:
            leaks.append(f"{blocks:.0f} blocks")
        more = num_files(_lasting(by_role(self._server.process.pid))) - files
        if more > FILES_SLACK:
            leaks.append(f"{more} files")
        return ", ".join(leaks) or "0"

    def _left(self, seen: dict[str, list[psutil.Process]]) -> list[str]:
        """Return what the processes did that live on outside of the server for a while."""
        everyone = [(name, p) for name, processes in seen.items() for p in processes]
        inside: set[int] = set()
        if self._server.process.poll() is None:
            inside = {p.pid for ps in by_role(self._server.process.pid).values() for p in ps}
        outside = [(name, p) for name, p in everyone if p.pid not in inside]
        psutil.wait_procs([p for _, p in outside], timeout=LEAVE_WITHIN_S)
        return [name for name, p in outside if is_alive(p)]


def _lasting(processes: dict[str, list[psutil.Process]]) -> list[psutil.Process]:
    return [p for name, ps in processes.items() if name not in TRANSIENT for p in ps]


def counts(counter: Counter[str]) -> str:
    """Write a counter in words: `3 x whole, 1 x cut`."""
    return ", ".join(f"{number} x {name}" for name, number in sorted(counter.items()))
