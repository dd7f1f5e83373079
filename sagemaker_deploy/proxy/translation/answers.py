"""Whole answers as objects, of any API, streamed or not."""

import json
from typing import Any

from sagemaker_deploy.proxy.translation.events import EventParser, Json
from sagemaker_deploy.proxy.translation.joins import JOINS, GenerateJoin, Join

REPLAY_INFO = "replay-info="
WITH_REPLAY_INFO = f"{REPLAY_INFO}true"  # asks a container for it


def read_answer(content: bytes, body: Json) -> Any:
    """Parse an answer; a stream is joined. Returns the text itself if it is neither."""
    try:
        return json.loads(content)
    except ValueError:
        pass
    parser = EventParser()
    events = [*parser.feed(content), *parser.end()]
    if not events:
        return content.decode(errors="replace")
    join = _join(events[0], body)
    for event in events:
        join.add(event)
    return join.result()


def _join(first: Json, body: Json) -> Join:
    kind = str(first.get("type", ""))
    if "token" in first or "generated_text" in first:
        return GenerateJoin(details=bool((body.get("parameters") or {}).get("details")))
    if kind.startswith("response."):
        return JOINS["responses"]()
    if kind:
        return JOINS["messages"]()
    return JOINS["chat" if "messages" in body else "completions"]()


def parse_replay_info(attributes: str) -> Json | None:
    """Return the object behind `replay-info=` in custom attributes, if there is one."""
    text = attributes.partition(REPLAY_INFO)[2]
    try:
        value = json.loads(text) if text.startswith("{") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
