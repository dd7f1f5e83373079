"""The facts about several replicas as one."""

from msgspec.structs import replace

from container.frontend.clients.engine_router import _merge
from container.messages.engine import Status
from tests.support.connections import INFO


def test_fallbacks_of_all_replicas_are_listed_once() -> None:
    infos = [
        replace(INFO, fallbacks=["a", "b"], not_proved=["c"]),
        replace(INFO, fallbacks=["b"], not_proved=["c", "d"]),
    ]
    merged = _merge([Status("ready", "ready", info) for info in infos]).info
    assert merged is not None
    assert (merged.fallbacks, merged.not_proved) == (["a", "b"], ["c", "d"])
