"""Connections to an engine for tests of the frontend alone."""

from typing import NoReturn

from container.errors import Unavailable
from container.frontend.clients.engine_client import TokenStream
from container.messages.engine import EngineInfo, Submit
from container.text.tokenizer import Tokenizer

INFO = EngineInfo(
    model_id="m",
    model_path="/nowhere",
    model_sha=None,
    model_type="llama",
    dtype="float32",
    device="cpu",
    vocabulary=64,
    max_input_tokens=100,
    max_total_tokens=120,
    cache_tokens=1000,
    max_batch_tokens=100,
)


class NoEngine:
    """Implements EngineConnection: there is no engine yet."""

    @property
    def status(self) -> NoReturn:
        raise Unavailable("the engine has not started yet")

    def submit(self, request: Submit, same_engine_as: TokenStream | None = None) -> NoReturn:
        raise Unavailable("the engine has not started yet")

    def add_adapter(self, name: str, source: str, *, preload: bool, pin: bool) -> NoReturn:
        raise Unavailable("the engine has not started yet")

    def remove_adapter(self, name: str) -> NoReturn:
        raise Unavailable("the engine has not started yet")

    @staticmethod
    def tokenizer(info: EngineInfo) -> Tokenizer:
        raise AssertionError("nobody asks for the tokenizer of no model")
