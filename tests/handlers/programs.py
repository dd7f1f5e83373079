"""Programs of users, and the handlers that they become."""

import itertools
import json
import threading
from pathlib import Path

from container.handlers.hooks import load_hooks
from container.handlers.invocation import Handler
from container.handlers.user_code import find_code
from container.messages.handler import AnswerHead, AnswerPart, Invoke
from container.settings.server import HandlerSettings

numbers = itertools.count()


def write_code(folder: Path, program: str, encoding: str = "utf-8") -> HandlerSettings:
    name = f"inference_{next(numbers)}.py"
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / name).write_text(program, encoding)
    return HandlerSettings(program=name)


def load_handler(
    folder: Path, program: str, model: object = None, encoding: str = "utf-8"
) -> Handler:
    code = find_code(write_code(folder, program, encoding), str(folder))
    assert code is not None
    handler = Handler(load_hooks(code), folder, None if code.loads_own_model else lambda: model)
    handler.load()
    return handler


def invoke(
    handler: Handler, body: object, kind: str = "application/json", accept: str = "", **headers: str
) -> tuple[AnswerHead, list[bytes]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    head, *parts = handler.answer(Invoke(1, raw, kind, accept, named), threading.Event())
    assert isinstance(head, AnswerHead)
    assert all(isinstance(part, AnswerPart) for part in parts)
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    return head, [part.data for part in parts]
