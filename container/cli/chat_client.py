"""A client of `/v1/chat/completions` for a terminal: streams, and errors that say what to do."""

import base64
import json
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError

Json = dict[str, Any]
CONNECT_S, SILENT_S = 5, 600


class ChatFailed(Exception):
    """A request that got no answer; the message says why, and what to do."""


class ServerLoading(ChatFailed):
    """The server is not ready yet; the message is its stage."""


@dataclass(slots=True)
class Reply:
    """An answer as it grows."""

    content: str = ""
    reasoning: str = ""
    calls: list[Json] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Json = field(default_factory=dict)

    def message(self) -> Json:
        """Return it as a message of the history."""
        message: Json = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    def take(self, chunk: Json) -> Json:
        """Add a chunk of the stream; return its delta."""
        self.usage = chunk.get("usage") or self.usage
        if not chunk.get("choices"):
            return {}
        choice = chunk["choices"][0]
        delta: Json = choice.get("delta") or {}
        self.content += delta.get("content") or ""
        self.reasoning += delta.get("reasoning_content") or ""
        for part in delta.get("tool_calls") or []:
            self._take_call(part)
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        return delta

    def _take_call(self, part: Json) -> None:
        while len(self.calls) <= part["index"]:
            function = {"name": "", "arguments": ""}
            self.calls.append({"id": "", "type": "function", "function": function})
        call, function = self.calls[part["index"]], part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["function"]["name"] = function.get("name") or call["function"]["name"]
        call["function"]["arguments"] += function.get("arguments") or ""


class ChatClient:
    """Calls one server. Raises ChatFailed."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = urllib3.Timeout(connect=CONNECT_S, read=SILENT_S)
        self._pool = urllib3.PoolManager(retries=False, timeout=timeout)

    def check_ready(self) -> None:
        """Raise ServerLoading or ChatFailed unless the server answers requests."""
        response = self._request("GET", "/health")
        if response.status == 503:
            raise ServerLoading(_message(response.data))
        if response.status >= 400 and response.status != 404:  # other servers have no such route
            raise self._failure(response)

    def models(self) -> list[str]:
        """Return the ids of what is served: the model and its adapters."""
        response = self._request("GET", "/v1/models")
        if response.status != 200:
            raise self._failure(response)
        return [model["id"] for model in json.loads(response.data)["data"]]

    def stream(self, body: Json, reply: Reply) -> Iterator[Json]:
        """Yield the deltas of a request's answer, which grows in `reply`."""
        streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
        response = self._request("POST", "/v1/chat/completions", streamed)
        if response.status != 200:
            raise self._failure(response)
        try:
            for event in _events(response):
                if "error" in event:
                    raise ChatFailed(_text_of(event))
                yield reply.take(event)
        except HTTPError as error:
            raise ChatFailed(f"the connection to {self.url} broke: {error}") from error
        finally:
            response.close()

    def _request(self, method: str, path: str, body: Json | None = None) -> Any:
        headers = self._headers | ({"Content-Type": "application/json"} if body else {})
        data = json.dumps(body).encode() if body else None
        try:
            return self._pool.request(
                method, self.url + path, body=data, headers=headers, preload_content=body is None
            )
        except HTTPError as error:
            raise ChatFailed(
                f"nothing answers at {self.url}: start a server with `python -m container serve` "
                "(or `make serve`), or give the URL of one"
            ) from error

    def _failure(self, response: Any) -> ChatFailed:
        if response.status == 401:
            return ChatFailed("the API key is missing or wrong: set API_KEY, or give --api-key")
        if response.status == 404:
            return ChatFailed(
                f"{self.url} has no /v1/chat/completions: is it a server of this kind?"
            )
        wait = response.headers.get("Retry-After")
        hint = f" (try again in {wait} s)" if wait else ""
        return ChatFailed(f"{_message(response.data)}{hint}")


def image_part(path: Path) -> Json:
    """Return a part of a message with the image of a file. Raises ChatFailed."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith("image/"):
        raise ChatFailed(f"{path} is no image: its name must end with .png, .jpg, .webp or .gif")
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise ChatFailed(f"{path} cannot be read: {error.strerror}") from error
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


def _events(response: Any) -> Iterator[Json]:
    rest = b""
    for piece in response.stream(65536):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if line.startswith(b"data:"):
                yield json.loads(data)


def _message(data: bytes) -> str:
    try:
        return _text_of(json.loads(data))
    except ValueError:
        return data.decode(errors="replace")[:300] or "an empty answer"


def _text_of(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)
