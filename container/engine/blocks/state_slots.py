"""The state slots of a recurrent model: one for each running sequence, and snapshots of prefixes.

Plain ints; the states behind them belong to the model. A snapshot has the
states at the end of a cached block and the block's prefix id; it lasts as long as the block, or
until it is evicted, least recently used first.

    0 .. num_running - 1        states of running sequences
    num_running .. num_slots-1  snapshots: free | reserved by the next step | known
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable

from container.engine.schedule import StateCopy


class StateSnapshots:
    """Allocates the slots of snapshots, and finds them by prefix id."""

    def __init__(self, slots: range) -> None:
        self._slots = slots
        self._free = deque(slots)
        self._reserved: set[int] = set()
        self._known: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, prefix_id: int) -> bool:
        return prefix_id in self._known

    def find(self, prefix_id: int) -> int:
        """Return the slot of a known snapshot, which is now the most recently used."""
        self._known.move_to_end(prefix_id)
        return self._known[prefix_id]

    def reserve(self) -> int | None:
        """Reserve a slot for the next step, evicting a snapshot; None if all are reserved."""
        if not self._free and self._known:
            self._free.append(self._known.popitem(last=False)[1])
        if not self._free:
            return None
        slot = self._free.popleft()
        self._reserved.add(slot)
        return slot

    def add(self, prefix_id: int, slot: int) -> None:
        """Make a reserved slot the snapshot of a prefix, unless there is one already."""
        self._reserved.remove(slot)
        if prefix_id in self._known:
            self._free.append(slot)
        else:
            self._known[prefix_id] = slot

    def release_reserved(self) -> None:
        """Free the slots that a step reserved and did not fill."""
        self._free.extend(self._reserved)
        self._reserved.clear()

    def drop(self, prefix_id: int) -> None:
        """Drop the snapshot of a prefix whose block is evicted, if there is one."""
        slot = self._known.pop(prefix_id, None)
        if slot is not None:
            self._free.append(slot)

    def clear(self) -> None:
        """Drop all snapshots; a failed step may have written garbage."""
        self._free.extend(self._known.values())
        self._known.clear()
        self.release_reserved()

    def check_invariants(self) -> None:
        """Assert that every slot is free, reserved or known, and only one of these."""
        slots = sorted([*self._free, *self._reserved, *self._known.values()])
        assert slots == list(self._slots), "a snapshot's slot leaked or is used twice"


class StateSlots:
    """Allocates and frees slots, the lowest first, so that those in use lie side by side."""

    def __init__(self, num_running: int, num_snapshots: int = 0) -> None:
        self.num_slots = num_running
        self.snapshots = StateSnapshots(range(num_running, num_running + num_snapshots))
        self._free = list(range(num_running))
        self._copies: list[StateCopy] = []

    @property
    def num_free(self) -> int:
        """Slots that `allocate` can still return."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Slots of running sequences."""
        return self.num_slots - len(self._free)

    def allocate(self, prefix_id: int | None = None) -> int:
        """Allocate a slot, with a copy of a prefix's snapshot. `num_free` was checked."""
        assert self._free, "allocate without checking num_free"
        slot = heapq.heappop(self._free)
        if prefix_id is not None:
            self._copies.append(StateCopy(self.snapshots.find(prefix_id), slot))
        return slot

    def free(self, slot: int) -> None:
        """Free a slot; its next sequence overwrites the states in it."""
        heapq.heappush(self._free, slot)

    def take_copies(self) -> tuple[StateCopy, ...]:
        """Return and clear the copies to run, in order, before the next step."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def check_invariants(self, used: Iterable[int]) -> None:
        """Assert that every slot is free or belongs to one of these sequences."""
        slots = sorted([*used, *self._free])
        assert slots == list(range(self.num_slots)), "a state slot leaked or has two owners"
        self.snapshots.check_invariants()
