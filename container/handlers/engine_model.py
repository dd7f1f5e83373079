"""The built-in engine as the `model` of a user's functions.

Calls go to this server's own frontends over HTTP, so every parameter, limit and error is that of
TGI's and OpenAI's routes, and all calls of all invocations share the engine's batches.
"""

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

Body = dict[str, Any]


class EngineError(Exception):
    """An error response of the engine's routes.

    Unless the user's code catches it, the client gets the same status.
    """

    def __init__(self, status_code: int, message: str) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.message = message


class EngineModel:
    """Generates text; safe to call from any number of threads."""

    # Without a predict_fn the model gets the whole body: `inputs` and `parameters` together.
    accepts_raw_body = True

    def __init__(self, host: str, port: int, api_key: str | None) -> None:
        self._address = (host, port)
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def generate(self, prompt: str, **parameters: Any) -> str:
        """Complete a prompt; parameters are TGI's (`max_new_tokens`, `temperature`, ...)."""
        answer = self._post("/generate", {"inputs": prompt, "parameters": parameters})
        return str(answer["generated_text"])

    def chat(self, messages: list[Body], **fields: Any) -> str:
        """Answer messages; fields are those of OpenAI's chat completions."""
        answer = self._post("/v1/chat/completions", {"messages": messages} | fields)
        return str(answer["choices"][0]["message"]["content"] or "")

    def stream(self, prompt: str | list[Body], **options: Any) -> Iterator[str]:
        """Yield the text of `generate` (for a string) or `chat` (for messages) as it comes."""
        if isinstance(prompt, list | tuple):
            for chunk in self._events("/v1/chat/completions", {"messages": prompt} | options):
                for choice in chunk.get("choices", []):
                    if text := choice["delta"].get("content"):
                        yield text
            return
        for event in self._events("/generate_stream", {"inputs": prompt, "parameters": options}):
            if not event["token"]["special"]:
                yield event["token"]["text"]

    def __call__(self, body: Body) -> Any:
        """Answer a whole body as `/invocations` would: an object, a list, or events of a stream."""
        is_chat = "messages" in body and "inputs" not in body
        path = "/v1/chat/completions" if is_chat else "/"
        return self._events(path, body) if body.get("stream") else self._post(path, body)

    async def agenerate(self, prompt: str, **parameters: Any) -> str:
        """Call `generate` from an async function."""
        return await asyncio.to_thread(self.generate, prompt, **parameters)

    async def achat(self, messages: list[Body], **fields: Any) -> str:
        """Call `chat` from an async function."""
        return await asyncio.to_thread(self.chat, messages, **fields)

    async def astream(self, prompt: str | list[Body], **options: Any) -> AsyncIterator[str]:
        """Call `stream` from an async function."""
        texts = self.stream(prompt, **options)
        try:
            while (text := await asyncio.to_thread(next, texts, None)) is not None:
                yield text
        finally:
            texts.close()  # type: ignore[attr-defined]  # it is a generator

    def _post(self, path: str, body: Body) -> Any:
        with closing(self._connection()) as connection:
            return json.loads(_send(connection, path, body, self._headers).read())

    def _events(self, path: str, body: Body) -> Iterator[Body]:
        # Closing the connection early tells the engine that the client has left.
        with closing(self._connection()) as connection:
            response = _send(connection, path, body | {"stream": True}, self._headers)
            while line := response.readline():
                if line.startswith(b"data:") and line.strip() != b"data: [DONE]":
                    event = json.loads(line[5:])
                    if "error" in event:
                        raise _error(503, event)
                    yield event

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self._address)


def _send(
    connection: http.client.HTTPConnection, path: str, body: Body, headers: dict[str, str]
) -> http.client.HTTPResponse:
    connection.request("POST", path, json.dumps(body).encode(), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise _error(response.status, json.loads(response.read()))
    return response


def _error(status: int, body: Body) -> EngineError:
    error = body.get("error", "the engine failed")
    if isinstance(error, dict):
        return EngineError(error.get("http_status_code", status), error["message"])
    return EngineError(status, error)
