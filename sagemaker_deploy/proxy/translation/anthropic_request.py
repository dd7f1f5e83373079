"""Anthropic's messages as OpenAI's chat, for containers that know only the latter."""

import json
from collections.abc import Iterator
from typing import Any

from sagemaker_deploy.proxy.translation.events import Json
from sagemaker_deploy.proxy.translation.unsupported import Unsupported

COPIED = ("max_tokens", "temperature", "top_p", "top_k", "stream")
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_from_messages(body: Json) -> Json:
    """Translate a body. Raises Unsupported for what chat cannot express."""
    chat: Json = {name: body[name] for name in COPIED if name in body}
    chat["messages"] = [*_system(body.get("system")), *_messages(body.get("messages"))]
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    if user := (body.get("metadata") or {}).get("user_id"):
        chat["user"] = user
    output_format = (body.get("output_config") or {}).get("format") or body.get("output_format")
    if output_format:
        schema = {"name": "output", "schema": output_format.get("schema")}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return chat | _tools(body)


def _system(system: Any) -> list[Json]:
    return [{"role": "system", "content": _text(system, "system")}] if system else []


def _messages(messages: Any) -> Iterator[Json]:
    if not isinstance(messages, list):
        raise Unsupported("messages", "must be a list")
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            yield {"role": message.get("role"), "content": content}
        elif message.get("role") == "assistant":
            yield _assistant(content or [])
        else:
            yield from _user(message.get("role"), content or [])


def _assistant(blocks: list[Json]) -> Json:
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    calls = [_call(block) for block in blocks if block["type"] == "tool_use"]
    known = ("text", "tool_use", "thinking", "redacted_thinking")
    _refuse_others(blocks, known)
    message: Json = {"role": "assistant", "content": "".join(texts) or None}
    return message | ({"tool_calls": calls} if calls else {})


def _call(block: Json) -> Json:
    function = {"name": block["name"], "arguments": json.dumps(block.get("input") or {})}
    return {"id": block["id"], "type": "function", "function": function}


def _user(role: Any, blocks: list[Json]) -> Iterator[Json]:
    _refuse_others(blocks, ("text", "image", "tool_result"))
    for block in blocks:
        if block["type"] == "tool_result":
            content = _text(block.get("content") or "", "tool_result")
            yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}
    parts = [_part(block) for block in blocks if block["type"] != "tool_result"]
    if all(part["type"] == "text" for part in parts):
        text = "\n".join(part["text"] for part in parts)
        if text:
            yield {"role": role, "content": text}
    else:
        yield {"role": role, "content": parts}


def _part(block: Json) -> Json:
    if block["type"] == "text":
        return {"type": "text", "text": block["text"]}
    source = block["source"]
    url = source.get("url") or f"data:{source.get('media_type')};base64,{source.get('data')}"
    return {"type": "image_url", "image_url": {"url": url}}


def _text(content: Any, field: str) -> str:
    if isinstance(content, str):
        return content
    _refuse_others(content, ("text",), field)
    return "\n".join(block["text"] for block in content)


def _refuse_others(blocks: list[Json], known: tuple[str, ...], field: str = "content") -> None:
    for block in blocks:
        if block.get("type") not in known:
            raise Unsupported(field, f"blocks of type {block.get('type')!r}; known: {known}")


def _tools(body: Json) -> Json:
    if not body.get("tools"):
        return {}
    for tool in body["tools"]:
        if tool.get("type", "custom") not in ("custom", None):
            raise Unsupported("tools", f"type {tool['type']!r}; only `custom` tools")
    functions = [
        {
            "name": tool["name"],
            "description": tool.get("description", ""),
            "parameters": tool.get("input_schema") or {"type": "object", "properties": {}},
        }
        for tool in body["tools"]
    ]
    fields: Json = {"tools": [{"type": "function", "function": item} for item in functions]}
    choice = body.get("tool_choice") or {}
    if choice.get("type") == "tool":
        fields["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif choice:
        fields["tool_choice"] = CHOICES.get(str(choice.get("type")), "auto")
    if choice.get("disable_parallel_tool_use"):
        fields["parallel_tool_calls"] = False
    return fields
