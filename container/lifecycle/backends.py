"""The backends of a server: which ones a model needs, their environment, and their processes."""

import os
from pathlib import Path

from container.handlers.tasks.selection import needs_engine, served_task
from container.handlers.user_code import find_code
from container.ipc.heartbeat import HeartbeatLimits
from container.lifecycle.child import Child
from container.settings.model import EmbeddingSettings, ModelSettings
from container.settings.process_env import (
    ADAPTER_RECORD,
    EMBEDDER_ADDRESS,
    ENGINE_ADDRESS,
    FAILURE_FILE,
    HANDLER_ADDRESS,
    RANKS_FOLDER,
    RESPONSES_FOLDER,
    SESSIONS_FOLDER,
    SUPERVISOR_PID,
)
from container.settings.server import HandlerSettings

# Torch's threads wait for each other by spinning. With the default they spin so long that one busy
# neighbour process slows a step 15 times; with this, 3 times, and alone as fast (docs/LOG.md).
SPIN_COUNT = "2000"
# The backends in the order of their drain: the subcommand that runs one, and the variable with its
# socket's address for it and the frontends. Without the variable there is no such process.
BACKENDS = {"handler": HANDLER_ADDRESS, "engine": ENGINE_ADDRESS, "embedder": EMBEDDER_ADDRESS}


def needed_backends(
    model: ModelSettings, handlers: HandlerSettings, embedding: EmbeddingSettings
) -> tuple[str, ...]:
    """Return the BACKENDS that a model needs. Raises ModelLoadError or ConfigError."""
    code = find_code(handlers, model.model_id)
    if code is None and embedding.is_for_task(model.task):
        return ("embedder",)
    extra = ("embedder",) if embedding.embedding_model_id else ()
    if code is not None and code.loads_own_model:
        return ("handler", *extra)
    task = served_task(model)
    if task is not None or code is not None:
        return ("handler", "engine", *extra) if needs_engine(task) else ("handler", *extra)
    return ("engine", *extra) if model.has_model or not extra else extra


def child_environ(folder: Path, names: tuple[str, ...], replicas: int) -> dict[str, str]:
    """Return the environment of all children, with files and sockets in `folder`."""
    metrics = folder / "metrics"
    metrics.mkdir()
    engines = [f"ipc://{folder}/engine-{replica}" for replica in range(replicas)]
    gentle = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": SPIN_COUNT}
    return (
        gentle
        | os.environ
        | {
            SUPERVISOR_PID: str(os.getpid()),
            ADAPTER_RECORD: str(folder / "adapters.json"),
            RESPONSES_FOLDER: str(folder / "responses"),
            SESSIONS_FOLDER: str(folder / "sessions"),
            RANKS_FOLDER: str(folder),
            FAILURE_FILE: str(folder / "failure"),
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        | {BACKENDS[name]: f"ipc://{folder}/{name}" for name in names}
        | ({ENGINE_ADDRESS: ",".join(engines)} if "engine" in names else {})
    )


def start_backends(environ: dict[str, str], limits: HeartbeatLimits) -> list[list[Child]]:
    """Start the backends that have an address in `environ`, in the order of their drain."""
    return [
        _start(name, environ[variable].split(","), environ, limits)
        for name, variable in BACKENDS.items()
        if variable in environ
    ]


def _start(
    name: str, addresses: list[str], environ: dict[str, str], limits: HeartbeatLimits
) -> list[Child]:
    """Start a process for each address; only the engine may have several."""
    if len(addresses) == 1:
        return [Child(name, "container", name, addresses[0], environ=environ, heartbeat=limits)]
    threads = str(max(1, (os.cpu_count() or 1) // len(addresses)))
    children = []
    for replica, address in enumerate(addresses):
        replica_environ = {ADAPTER_RECORD: f"{environ[ADAPTER_RECORD]}.{replica}"}
        replica_environ |= {} if "OMP_NUM_THREADS" in environ else {"OMP_NUM_THREADS": threads}
        arguments = (address, "--copy", str(replica))
        children.append(
            Child(
                f"{name} {replica}",
                "container",
                name,
                *arguments,
                environ=environ | replica_environ,
                heartbeat=limits,
            )
        )
    return children
