"""Routes requests to several engines, each with a replica of the model.

A request goes to the replica that has probably cached the longest prefix of its prompt, if that
prefix is long enough and the replica not much busier than another; else to the least busy one.
Requests of a session stay together.
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

# A replica may have this many requests more than the least busy one and still be preferred for a
# cached prefix.
MAX_LEAD = 8
# A prefix shorter than this fraction of its prompt is not worth a longer queue.
MIN_PREFIX_FRACTION = 0.25


class EngineGroup:
    """Implements EngineConnection for the replicas of one model."""

    def __init__(self, addresses: Sequence[str]) -> None:
        # Streams of several engines may share an inbox, so no two requests share a number.
        ids = itertools.count(1)
        self._engines = [EngineClient(address, ids) for address in addresses]
        self._prefixes = PrefixMap()
        self._round_robin = 0
        # The statuses that were merged last, and the result.
        self._merged_statuses: list[Status] = []
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
        """The merged status: ready while any replica is, with the loads added up.

        Raises Unavailable when no replica is connected.
        """
        statuses = list(self._connected_statuses().values())
        if not statuses:
            return self._engines[0].status  # raises the reason
        # Statuses come four times a second, requests more often.
        if len(statuses) != len(self._merged_statuses) or any(
            map(operator.is_not, statuses, self._merged_statuses)
        ):
            self._merged_statuses, self._status = statuses, _merge(statuses)
        return self._status

    @property
    def num_free(self) -> int:
        """How many more requests the ready replicas take; see EngineConnection."""
        _ = self.status  # raises when none is connected
        return sum(max(0, self._engines[replica].num_free) for replica in self._ready_statuses())

    def submit(self, request: Submit, same_engine_as: TokenStream | None = None) -> TokenStream:
        """Send a request to one replica; see EngineConnection."""
        replica = self._choose(request.prompt_ids, request.session)
        stream = self._engines[replica].submit(request, same_engine_as)
        self._prefixes.record(request.prompt_ids, replica)
        return stream

    def add_adapter(self, name: str, source: str, *, preload: bool, pin: bool) -> None:
        """Register a LoRA adapter in all replicas. Raises the refusal of a replica."""
        self._check_all()
        refused: list[Conflict] = []
        for engine in self._engines:
            try:
                engine.add_adapter(name, source, preload=preload, pin=pin)
            except Conflict as error:  # an interrupted change has registered it in some replicas
                refused.append(error)
        if len(refused) == len(self._engines):
            raise refused[0]

    def remove_adapter(self, name: str) -> None:
        """Unregister a LoRA adapter in all replicas. Raises NotFound if none has it."""
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
        """Refuse a change of adapters unless all replicas are ready. Raises Unavailable."""
        for engine in self._engines:
            if engine.status.state != "ready":
                raise Unavailable(
                    "not all replicas of the model are ready: try again", retry_after_s=5
                )

    def _connected_statuses(self) -> dict[int, Status]:
        """Return the status of each connected replica by its index."""
        statuses = {}
        for replica, engine in enumerate(self._engines):
            with contextlib.suppress(Unavailable):
                statuses[replica] = engine.status
        return statuses

    def _ready_statuses(self) -> dict[int, Status]:
        """Return the status of each ready replica by its index."""
        statuses = self._connected_statuses().items()
        return {replica: status for replica, status in statuses if status.state == "ready"}

    def _choose(self, prompt_ids: list[int], session: str) -> int:
        ready = self._ready_statuses()
        if not ready:
            return 0  # raises the reason
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
            reuses_prefixes = info is not None and info.reuses_prefixes
            if reuses_prefixes and length >= MIN_PREFIX_FRACTION * len(prompt_ids):
                return known
        idle = [replica for replica, load in loads.items() if load == least]
        self._round_robin += 1
        return idle[self._round_robin % len(idle)]


def _merge(statuses: list[Status]) -> Status:
    """Merge the statuses of several replicas, at least one."""
    ready = [status for status in statuses if status.state == "ready"]
    total = EngineLoad()
    for status in statuses:  # counters must not fall when one of them is not ready for a moment
        total = _add(total, status.load)
    infos = [status.info for status in ready if status.info is not None]
    return msgspec.structs.replace((ready or statuses)[0], info=_merge_infos(infos), load=total)


def _merge_infos(infos: list[EngineInfo]) -> EngineInfo | None:
    """Merge the facts about all replicas, whose caches and checks may differ."""
    if not infos:
        return None
    fallbacks = dict.fromkeys(line for info in infos for line in info.fallbacks)
    not_proved = dict.fromkeys(part for info in infos for part in info.not_proved)
    return msgspec.structs.replace(
        infos[0],
        fallbacks=[*fallbacks],
        not_proved=[*not_proved],
        cache_tokens=sum(info.cache_tokens for info in infos),
        state_slots=sum(info.state_slots for info in infos),
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
