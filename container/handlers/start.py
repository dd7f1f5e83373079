"""The composition roots of the handler server and of its workers: settings in, processes out."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from huggingface_hub import snapshot_download

from container.errors import ModelLoadError
from container.handlers.engine_model import EngineModel
from container.handlers.functions import load_hooks
from container.handlers.handler import Handler
from container.handlers.pool import start_worker
from container.handlers.requirements import install
from container.handlers.server import HandlerLimits, HandlerServer
from container.handlers.source import UserCode, find_code
from container.handlers.worker import Worker
from container.layout import model_root
from container.settings import SAGEMAKER_MODEL_DIR, Settings

log = logging.getLogger(__name__)

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def make_server(settings: Settings, address: str, parent_pid: int) -> HandlerServer:
    """Make the server; it installs what the user's code needs before it starts workers."""
    limits = HandlerLimits(
        max_requests=settings.max_concurrent_requests,
        time_limit_s=settings.handler_timeout_s,
        num_workers=settings.handler_workers,
        drain_s=settings.drain_s,
    )
    return HandlerServer(
        address,
        f"{address}-workers",
        limits,
        prepare=partial(_prepare, settings),
        start=start_worker,
        parent_pid=parent_pid,
    )


def make_worker(settings: Settings, address: str, name: str, parent_pid: int) -> Worker:
    """Make a worker; it loads the user's code once it runs."""
    return Worker(address, name, partial(_make_handler, settings, name), parent_pid)


def model_folder(settings: Settings) -> Path:
    """What model_fn is given: the model's folder, downloaded if it is on the Hub."""
    if settings.model_id is None:
        return model_root(SAGEMAKER_MODEL_DIR)
    folder = Path(settings.model_id).expanduser()
    if folder.is_dir():
        return model_root(folder.resolve())
    try:
        path = snapshot_download(
            settings.model_id, revision=settings.revision, token=settings.hf_token
        )
    except Exception as error:  # the Hub fails in many ways, all of which end the start
        raise ModelLoadError(
            f"HF_MODEL_ID={settings.model_id} is no folder here and cannot be downloaded: {error}"
        ) from error
    return Path(path)


def _prepare(settings: Settings, progress: Callable[[str], None]) -> None:
    code = _code(settings)
    if code.requirements is not None:
        progress(f"installing {code.requirements}")
        install(code.requirements)
    if code.brings_model:
        progress("finding the model's folder")
        model_folder(settings)
    progress(f"loading {code.path}")


def _make_handler(settings: Settings, name: str) -> tuple[Handler, int]:
    code = _code(settings)
    hooks = load_hooks(code)
    host = ANYWHERE.get(settings.host, settings.host)
    handler = Handler(
        hooks,
        model_folder(settings) if code.brings_model else Path(settings.model_source()),
        None if code.brings_model else lambda: EngineModel(host, settings.port, settings.api_key),
        default_accept=settings.default_accept,
        gpu_id=_gpu(int(name.split("-")[1])),
    )
    many = settings.max_concurrent_requests if handler.is_concurrent else 1
    return handler, settings.handler_concurrency or many


def _code(settings: Settings) -> UserCode:
    code = find_code(settings)
    assert code is not None, "the supervisor starts a handler only when there is code"
    return code


def _gpu(number: int) -> int | None:
    """Spread workers over the visible GPUs; None without any."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([one for one in visible.split(",") if one.strip() not in ("", "-1")])
    else:
        count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return number % count if count else None
