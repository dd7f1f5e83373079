"""The served model as a frontend knows it: its status, its facts and its tokenizer."""

import logging
import os
import threading
from collections.abc import Callable

from container.errors import ModelLoadError, Unavailable
from container.frontend.clients.engine_client import EngineConnection, NoEngine
from container.frontend.generation.offloading import Offload
from container.messages.engine import EngineInfo, Status
from container.text.templates.renderer import TemplateRenderer
from container.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

LoadTokenizer = Callable[[EngineInfo], Tokenizer]


class ServedModel:
    """Owns the tokenizer of this process and reads the engine's status."""

    def __init__(
        self, engine: EngineConnection, load_tokenizer: LoadTokenizer, offload: Offload
    ) -> None:
        """`offload` runs the load of the tokenizer."""
        self._engine = engine
        self._load_tokenizer = load_tokenizer
        self._offload = offload
        self._tokenizer: Tokenizer | None = None
        self._loading = threading.Lock()

    @property
    def has_engine(self) -> bool:
        """Whether this server has a language model at all."""
        return not isinstance(self._engine, NoEngine)

    @property
    def status(self) -> Status:
        """The engine's status. Raises Unavailable when it has exited, NotFound if there is none."""
        return self._engine.status

    @property
    def info(self) -> EngineInfo:
        """The loaded model. Raises Unavailable before it is loaded."""
        return self.ready()[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """The loaded model's tokenizer. Raises Unavailable before it is loaded."""
        return self.ready()[1]

    def check_ready(self) -> None:
        """Raise Unavailable unless a request could be served now."""
        self.ready()

    def ready(self) -> tuple[EngineInfo, Tokenizer]:
        """Return the loaded model and its tokenizer. Raises Unavailable or NotFound."""
        status = self._engine.status
        if status.state == "draining":
            raise Unavailable(status.detail, retry_after_s=30)
        if status.state == "recovering":
            raise Unavailable(status.detail, retry_after_s=1)
        if status.info is None or status.state == "loading":
            raise Unavailable(f"the model is loading: {status.detail}", retry_after_s=5)
        if self._tokenizer is None:
            with self._loading:  # the first request loads, concurrent ones wait
                if self._tokenizer is None:
                    self._tokenizer = self._load(status.info)
        return status.info, self._tokenizer

    def _load(self, info: EngineInfo) -> Tokenizer:
        try:
            tokenizer = self._offload(self._load_tokenizer, info)
        except ModelLoadError as error:  # the engine loaded the same files; they have changed since
            log.error("frontend: loading the tokenizer failed: %s; requests fail", error.message)
            raise Unavailable("the tokenizer cannot be loaded", retry_after_s=30) from error
        tokenizer.start_renderer()
        return tokenizer


def tokenizer_loader(
    *,
    trust_remote_code: bool,
    template_path: str | None,
    renderer: TemplateRenderer | None = None,
) -> LoadTokenizer:
    """Make the function that loads a tokenizer from the folder that the engine names."""

    def load(info: EngineInfo) -> Tokenizer:
        return Tokenizer.from_folder(
            os.fspath(info.model_path),
            trust_remote_code=trust_remote_code,
            template_path=template_path,
            renderer=renderer,
        )

    return load
