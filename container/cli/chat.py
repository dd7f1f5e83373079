"""`python -m container chat`: a conversation with a server at a terminal."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from container.cli.chat_client import ChatClient, ChatFailed, Reply, ServerLoading, image_part

Json = dict[str, Any]
HELP = """\
/image PATH     put an image before the next message
/system TEXT    set the system prompt (and begin a new conversation)
/again          ask the last message again
/new            begin a new conversation
/save PATH      write the conversation as JSON
/exit           leave; so does Ctrl-D. Ctrl-C stops an answer"""
HISTORY = Path("sagemaker-llm-container") / "chat_history"
LOADING_EVERY_S = 0.5
DIM, BOLD, PLAIN = "\033[2m", "\033[1m", "\033[0m"


@dataclass(slots=True)
class Chat:
    """A conversation. `fields` are those of every request: sampling, response format.

    `write` prints text unchanged; `is_terminal` allows colours and the line with token counts.
    """

    client: ChatClient
    fields: Json
    write: Callable[[str], None]
    is_terminal: bool
    system: str | None = None
    messages: list[Json] = field(default_factory=list)
    images: list[Json] = field(default_factory=list)

    def send(self, text: str) -> None:
        """Send a message and print its answer. Raises ChatFailed; then the history is as before."""
        content = [*self.images, {"type": "text", "text": text}] if self.images else text
        self.images = []
        self.messages.append({"role": "user", "content": content})
        self.answer()

    def answer(self) -> None:
        """Print the answer to the last message. Raises ChatFailed, without that message."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        body = self.fields | {"messages": [*opening, *self.messages]}
        reply, begun = Reply(), time.monotonic()
        first_at: float | None = None
        try:
            with contextlib.suppress(KeyboardInterrupt):
                for delta in self.client.stream(body, reply):
                    is_token = any(delta.get(name) for name in ("content", "reasoning_content"))
                    first_at = first_at or (time.monotonic() if is_token else None)
                    self._print(delta, reply)
        except ChatFailed:
            self.messages.pop()
            raise
        self.messages.append(reply.message())
        self.write("\n")
        self._print_usage(reply, begun, first_at)

    def again(self) -> None:
        """Ask the last message again. Raises ChatFailed."""
        while self.messages and self.messages[-1]["role"] != "user":
            self.messages.pop()
        if not self.messages:
            raise ChatFailed("there is no message yet")
        self.answer()

    def _print(self, delta: Json, reply: Reply) -> None:
        if thought := delta.get("reasoning_content"):
            self.write(f"{DIM}{thought}{PLAIN}" if self.is_terminal else "")
        if content := delta.get("content"):
            is_first = content == reply.content
            self.write(
                ("\n" if is_first and reply.reasoning and self.is_terminal else "") + content
            )
        for call in delta.get("tool_calls") or []:
            function = call.get("function") or {}
            name = f"\n{function['name']} " if function.get("name") else ""
            self.write(name + (function.get("arguments") or ""))

    def _print_usage(self, reply: Reply, begun: float, first_at: float | None) -> None:
        if not self.is_terminal or not reply.usage or first_at is None:
            return
        tokens, seconds = reply.usage["completion_tokens"], time.monotonic() - first_at
        speed = f", {(tokens - 1) / seconds:.1f} tokens/s" if tokens > 1 and seconds > 0 else ""
        cut = ", cut at the length limit" if reply.finish_reason == "length" else ""
        prompt = reply.usage["prompt_tokens"]
        first_ms = 1000 * (first_at - begun)
        usage = f"{prompt} + {tokens} tokens, first after {first_ms:.0f} ms{speed}{cut}"
        self.write(f"{DIM}{usage}{PLAIN}\n")


def wait_ready(client: ChatClient, show: Callable[[str], None]) -> None:
    """Wait while the server loads its model, and show its stages. Raises ChatFailed."""
    shown = ""
    while True:
        try:
            client.check_ready()
            return
        except ServerLoading as stage:
            if str(stage) != shown:
                shown = str(stage)
                show(f"waiting for the server: {shown}\n")
            time.sleep(LOADING_EVERY_S)


def response_format(schema: str) -> Json:
    """Return the field for a JSON Schema, given as JSON or as a file. Raises ChatFailed."""
    text = schema
    if not schema.lstrip().startswith("{"):
        try:
            text = Path(schema).read_text()
        except OSError as error:
            raise ChatFailed(
                f"--json-schema: {schema} is neither JSON nor a file ({error.strerror})"
            ) from error
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise ChatFailed(f"--json-schema: this is not JSON: {error}") from error
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": parsed}}


def converse(chat: Chat, models: list[str]) -> None:
    """Read messages from a terminal until its end."""
    _load_history()
    chat.write(
        f"{BOLD}{', '.join(models)}{PLAIN} at {chat.client.url}   /help lists the commands\n"
    )
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            chat.write("\n")
            return
        except KeyboardInterrupt:
            chat.write("\n")
            continue
        if line in ("/exit", "/quit"):
            return
        if line:
            try:
                _do(chat, line)
            except ChatFailed as error:
                chat.write(f"error: {error}\n")


def _do(chat: Chat, line: str) -> None:
    command, _, argument = line.partition(" ")
    if not command.startswith("/"):
        chat.send(line)
    elif command == "/again":
        chat.again()
    elif command == "/image":
        chat.images.append(image_part(Path(argument).expanduser()))
    elif command in ("/new", "/system"):
        chat.messages.clear()
        chat.system = argument if command == "/system" else chat.system
    elif command == "/save":
        _save(chat, Path(argument).expanduser())
    else:
        chat.write(f"{HELP}\n")


def _save(chat: Chat, path: Path) -> None:
    try:
        path.write_text(json.dumps(chat.messages, indent=2, ensure_ascii=False))
    except OSError as error:
        raise ChatFailed(f"{path} cannot be written: {error.strerror}") from error
    chat.write(f"{len(chat.messages)} messages in {path}\n")


def _load_history() -> None:
    """Let the arrow keys find earlier messages, of earlier conversations too."""
    import atexit
    import readline

    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(cache) / HISTORY
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            readline.read_history_file(path)
        readline.set_history_length(1000)
        atexit.register(_write_history, path)


def _write_history(path: Path) -> None:
    import readline

    with contextlib.suppress(OSError):
        readline.write_history_file(path)


def write(text: str) -> None:
    """Print text unchanged, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
