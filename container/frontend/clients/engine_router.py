"""Several engines, each with a copy of the model, behind one connection.

A request goes to the copy to which this frontend has sent the longest part of its prompt before, if
that is a good part and the copy has not much more to do than another; else to the one with the
least to do. Requests of a session stay together.
"""

import contextlib
import itertools
import operator
import time
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from container.errors import Conflict, NotFound, Unavailable
from container.frontend.clients.engine_client import EngineClient, TokenStream
from container.frontend.clients.prefix_map import PrefixMap
from container.messages.engine import EngineInfo, EngineLoad, Status, Submit

# How many requests more than the idlest one a copy may have and still get what it knows.
MAX_LEAD = 8
# A shorter known part of a prompt is not worth a longer queue.
LEAST_SHARE = 0.25


class EngineGroup:
    """Implements EngineConnection for copies of one model."""

    def __init__(self, addresses: Sequence[str]) -> None:
        # Streams of several engines may share an inbox, so no two requests share a number.
        ids = itertools.count(1)
        self._engines = [EngineClient(address, ids) for address in addresses]
        self._prefixes = PrefixMap()
        self._turn = 0
        # The last words of all as they were joined last, and what came of it.
        self._joined: list[Status] = []
        self._status = Status("loading", "no engine has been heard of")

    def start(self) -> None:
        """Connect to all; returns at once."""
        for engine in self._engines:
            engine.start()

    def wait_known(self, timeout_s: float) -> None:
        """Wait until each has sent its status, or nothing listens at its address."""
        until = time.monotonic() + timeout_s
        for engine in self._engines:
            engine.wait_known(max(0.0, until - time.monotonic()))

    @property
    def status(self) -> Status:
        """The copies as one: ready while any is, with their loads added up.

        Raises Unavailable when none is connected.
        """
        statuses = list(self._told().values())
        if not statuses:
            return self._engines[0].status  # which says why there is none
        # Statuses come four times a second, requests more often.
        if len(statuses) != len(self._joined) or any(map(operator.is_not, statuses, self._joined)):
            self._joined, self._status = statuses, _join(statuses)
        return self._status

    @property
    def num_free(self) -> int:
        """How many more requests the ready copies take; see EngineConnection."""
        _ = self.status  # raises when none is connected
        ready = [replica for replica, status in self._told().items() if status.state == "ready"]
        return sum(max(0, self._engines[replica].num_free) for replica in ready)

    def submit(self, request: Submit, same_engine_as: TokenStream | None = None) -> TokenStream:
        """Send a request to one of them; see EngineConnection."""
        replica = self._choose(request.prompt_ids, request.session)
        stream = self._engines[replica].submit(request, same_engine_as)
        self._prefixes.record(request.prompt_ids, replica)
        return stream

    def add_adapter(self, name: str, source: str, *, preload: bool, pin: bool) -> None:
        """Make a LoRA adapter known to all copies. Raises what one refuses it with."""
        self._check_all()
        refused: list[Conflict] = []
        for engine in self._engines:
            try:
                engine.add_adapter(name, source, preload=preload, pin=pin)
            except Conflict as error:  # a change that broke off has left it in some of them
                refused.append(error)
        if len(refused) == len(self._engines):
            raise refused[0]

    def remove_adapter(self, name: str) -> None:
        """Forget a LoRA adapter in all copies. Raises NotFound when none knows it."""
        self._check_all()
        missing: list[NotFound] = []
        for engine in self._engines:
            try:
                engine.remove_adapter(name)
            except NotFound as error:
                missing.append(error)
        if len(missing) == len(self._engines):
            raise missing[0]

    def _check_all(self) -> None:
        """Refuse a change of adapters that not all copies could make. Raises Unavailable."""
        for engine in self._engines:
            if engine.status.state != "ready":
                raise Unavailable("not all copies of the model are ready", retry_after_s=5)

    def _told(self) -> dict[int, Status]:
        """The last words of those that are connected."""
        statuses = {}
        for replica, engine in enumerate(self._engines):
            with contextlib.suppress(Unavailable):
                statuses[replica] = engine.status
        return statuses

    def _choose(self, prompt_ids: list[int], session: str) -> int:
        ready = {
            replica: status for replica, status in self._told().items() if status.state == "ready"
        }
        if not ready:
            return 0  # which says why it cannot take it
        if session:
            return max(ready, key=lambda replica: zlib.crc32(f"{session} {replica}".encode()))
        # A status is a little old; what this frontend has sent since then is in its own count.
        loads = {
            replica: max(self._engines[replica].num_open, status.load.running + status.load.waiting)
            for replica, status in ready.items()
        }
        least = min(loads.values())
        known, length = self._prefixes.find(prompt_ids)
        if known in loads and loads[known] - least <= MAX_LEAD:
            info = ready[known].info
            is_kept = info is not None and info.reuses_prefixes
            if is_kept and length >= LEAST_SHARE * len(prompt_ids):
                return known
        idle = [replica for replica, load in loads.items() if load == least]
        self._turn += 1
        return idle[self._turn % len(idle)]


def _join(statuses: list[Status]) -> Status:
    """Several copies' words as one's; there is at least one."""
    ready = [status for status in statuses if status.state == "ready"]
    total = EngineLoad()
    for status in statuses:  # counters must not fall when one of them is not ready for a moment
        total = _add(total, status.load)
    infos = [status.info for status in ready if status.info is not None]
    return msgspec.structs.replace((ready or statuses)[0], info=_join_infos(infos), load=total)


def _join_infos(infos: list[EngineInfo]) -> EngineInfo | None:
    """What is true of all copies; their caches may differ in size."""
    if not infos:
        return None
    return msgspec.structs.replace(
        infos[0],
        cache_tokens=sum(info.cache_tokens for info in infos),
        max_input_tokens=min(info.max_input_tokens for info in infos),
        max_total_tokens=min(info.max_total_tokens for info in infos),
    )


def _add(first: Any, second: Any) -> Any:
    """Add two structs of numbers, field by field."""
    if isinstance(first, list):
        longest = max(first, second, key=len)
        pairs = zip(first, second, strict=False)
        return [_add(a, b) for a, b in pairs] or list(longest)
    if isinstance(first, msgspec.Struct):
        names = (field.name for field in msgspec.structs.fields(first))
        added = {name: _add(getattr(first, name), getattr(second, name)) for name in names}
        return type(first)(**added)
    return first + second
