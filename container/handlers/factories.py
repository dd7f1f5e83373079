"""The composition roots of the handler server and of its workers: settings in, processes out."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from container.errors import ModelLoadError
from container.files import find_special, find_unreadable
from container.handlers.engine_model import EngineModel
from container.handlers.hooks import load_hooks
from container.handlers.invocation import Handler
from container.handlers.invocation_server import HandlerLimits, HandlerServer
from container.handlers.requirements import install
from container.handlers.tasks.selection import (
    GENERATED,
    generated_prefix,
    needs_engine,
    served_task,
)
from container.handlers.user_code import UserCode, find_code
from container.handlers.worker_pool import WorkerLimits, start_worker
from container.handlers.worker_process import Worker
from container.ipc.heartbeat import Heartbeat
from container.machine import total_memory_bytes
from container.settings.model import ModelSettings
from container.settings.process_env import SAGEMAKER_MODEL_DIR, model_root, outward_links
from container.settings.server import HandlerSettings, ServerSettings
from container.settings.settings import Settings

# The part of the machine's memory that one worker process may take, unless HANDLER_MEMORY is set.
MEMORY_PART = 0.9
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def make_server(
    settings: Settings, address: str, parent_pid: int, heartbeat: Heartbeat | None
) -> HandlerServer:
    """Return the server; it installs requirements.txt before it starts workers."""
    limits = HandlerLimits(
        max_requests=settings.engine.max_concurrent_requests,
        time_limit_s=settings.handlers.handler_timeout_s,
        num_workers=settings.handlers.handler_workers,
        drain_s=settings.server.drain_s,
        worker=WorkerLimits(
            settings.server.heartbeat_timeout_s,
            settings.handlers.handler_memory * 2**20
            if settings.handlers.handler_memory is not None
            else int(MEMORY_PART * total_memory_bytes()),
        ),
    )
    return HandlerServer(
        address,
        f"{address}-workers",
        limits,
        prepare=partial(_prepare, settings.model, settings.handlers),
        start=start_worker,
        parent_pid=parent_pid,
        heartbeat=heartbeat,
    )


def make_worker(settings: Settings, address: str, name: str, parent_pid: int) -> Worker:
    """Return a worker; it loads the user's code once it runs."""
    default = settings.engine.max_concurrent_requests
    load = partial(_load, settings.model, settings.handlers, settings.server, default, name)
    return Worker(address, name, load, parent_pid)


def model_folder(settings: ModelSettings) -> Path:
    """Return the folder for model_fn, downloaded if the model is on the Hub."""
    folder = Path(settings.model_id or SAGEMAKER_MODEL_DIR).expanduser()
    if settings.model_id is None or folder.is_dir():
        root = model_root(folder.resolve())
        if links := outward_links(root):
            raise ModelLoadError(f"{links[0]} is a link that leads out of the model's folder")
        if (special := find_special(root)) is not None:
            raise ModelLoadError(special)
        return root
    try:
        path = snapshot_download(
            settings.model_id, revision=settings.revision, token=settings.hf_token
        )
    except Exception as error:  # the Hub fails in many ways, all of which end the start
        raise ModelLoadError(
            f"HF_MODEL_ID={settings.model_id} is not a folder and cannot be downloaded: {error}"
        ) from error
    return Path(path)


def _prepare(
    settings: ModelSettings, handlers: HandlerSettings, progress: Callable[[str], None]
) -> None:
    code = find_code(handlers, settings.model_id)
    if code is not None and code.requirements is not None:
        progress(f"installing {code.requirements}")
        install(code.requirements)
    if _loads_own_model(code) or not needs_engine(served_task(settings)):
        progress("finding the model's folder")
        folder = model_folder(settings)
        if code is None and (unreadable := find_unreadable(folder)) is not None:
            raise ModelLoadError(unreadable)
    progress(f"loading {code.path if code is not None else served_task(settings)}")


def _load(
    model: ModelSettings,
    handlers: HandlerSettings,
    server: ServerSettings,
    max_requests: int,
    name: str,
) -> tuple[Handler, int]:
    """Load the user's code; return its handler, and how many requests it handles at a time."""
    code = find_code(handlers, model.model_id)
    gpu_id = _gpu(int(name.split("-")[1]))
    handler = Handler(
        load_hooks(code) if code is not None else {},
        _model_dir(model, code),
        None if _loads_own_model(code) else partial(_built_in_model, model, server, gpu_id),
        default_accept=handlers.default_accept,
        gpu_id=gpu_id,
    )
    default = max_requests if handler.is_concurrent else 1
    return handler, handlers.handler_concurrency or default


def _built_in_model(settings: ModelSettings, server: ServerSettings, gpu_id: int | None) -> Any:
    """Return the engine, or the pipeline of HF_TASK; only the latter loads torch."""
    host = ANYWHERE.get(server.host, server.host)
    engine = EngineModel(host, server.port, server.api_key)
    task = served_task(settings)
    if task is None:
        return engine
    from container.handlers.tasks.pipelines import GeneratedTask, load_pipeline

    if task in GENERATED:
        return GeneratedTask(engine, task, generated_prefix(settings))
    return load_pipeline(
        task,
        model_folder(settings),
        gpu_id=gpu_id,
        trust_remote_code=settings.trust_remote_code,
    )


def _loads_own_model(code: UserCode | None) -> bool:
    return code is not None and code.loads_own_model


def _model_dir(settings: ModelSettings, code: UserCode | None) -> Path:
    if _loads_own_model(code) or not needs_engine(served_task(settings)):
        return model_folder(settings)
    return Path(settings.model_source())


def _gpu(number: int) -> int | None:
    """Assign a worker to one of the visible GPUs; None if there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    else:
        count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return number % count if count else None
