"""SageMaker's sticky sessions for clients that do not know them.

A client's conversation has a key; the first request of a key opens a session, and the following
ones go to the instance that opened it, where the conversation is in the KV cache.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakValueDictionary

MOST_SESSIONS = 10_000
HEADER = "X-Session-Id"
MARGIN = timedelta(seconds=10)


class Sessions:
    """The sessions of one endpoint by key; the one used least recently is forgotten first."""

    def __init__(self, open_session: Callable[[], Awaitable[str]]) -> None:
        self._open = open_session
        self._sessions: OrderedDict[str, tuple[str, datetime]] = OrderedDict()
        # One for each key, while it is in use: a slow answer holds up its own conversation only.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def id_of(self, key: str) -> str | None:
        """Return the id of a key's session, opened if there is none. Raises CallFailed."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            known, ends = self._sessions.pop(key, ("", datetime.min.replace(tzinfo=UTC)))
            if ends < datetime.now(UTC) + MARGIN:
                known, ends = parse_session(await self._open())
            if not known:
                return None
            self._sessions[key] = known, ends
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
            return known

    def forget(self, key: str) -> None:
        """Forget a session that the endpoint does not know any more."""
        self._sessions.pop(key, None)


def session_key(headers: Mapping[str, str], body: Mapping[str, Any]) -> str:
    """Return the key of a conversation: a header, or a field that clients set."""
    metadata = body.get("metadata")
    user_id = metadata.get("user_id") if isinstance(metadata, Mapping) else None
    key = headers.get(HEADER) or body.get("prompt_cache_key") or body.get("user") or user_id
    return str(key or "")


def parse_session(header: str) -> tuple[str, datetime]:
    """Parse `ID; Expires=TIME`; without a time it lasts for a minute."""
    session_id, _, rest = header.partition(";")
    text = rest.partition("Expires=")[2].strip()
    try:
        ends = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        ends = datetime.now(UTC) + timedelta(minutes=1)
    return session_id.strip(), ends if ends.tzinfo else ends.replace(tzinfo=UTC)
