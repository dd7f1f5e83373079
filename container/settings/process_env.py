"""Names and folders that this container's processes share and that are no settings."""

import os
from pathlib import Path

# Not settings: the supervisor passes its process id and the addresses of sockets to its children.
ENGINE_ADDRESS = "CONTAINER_ENGINE_ADDRESS"
HANDLER_ADDRESS = "CONTAINER_HANDLER_ADDRESS"
EMBEDDER_ADDRESS = "CONTAINER_EMBEDDER_ADDRESS"
# Of a model's server on a multi-model endpoint: the process that it belongs to.
PARENT_PID = "CONTAINER_PARENT"
# Where frontends keep which sticky sessions are open.
SESSIONS_FOLDER = "CONTAINER_SESSIONS"
# Where frontends keep the responses that clients may ask for again.
RESPONSES_FOLDER = "CONTAINER_RESPONSES"
# Where the processes that share a model meet.
RANKS_FOLDER = "CONTAINER_RANKS_FOLDER"
# Where the engine records its adapters, for the engine that takes over after a crash.
ADAPTER_RECORD = "CONTAINER_ADAPTER_RECORD"
# Where a backend that cannot serve leaves the reason.
FAILURE_FILE = "CONTAINER_FAILURE_FILE"
SUPERVISOR_PID = "CONTAINER_SUPERVISOR_PID"
# The pipe to which a backend writes its heartbeats.
HEARTBEAT_FD = "CONTAINER_HEARTBEAT_FD"
# The socket on which gunicorn accepts connections.
LISTENER_FD = "CONTAINER_LISTENER_FD"
SAGEMAKER_MODEL_DIR = Path("/opt/ml/model")
ADDITIONAL_DATA = Path("/opt/ml/additional-model-data-sources")


def outward_links(folder: Path) -> list[Path]:
    """List the links in a model's folder, user code apart, that lead to files outside of it.

    The files of a snapshot in the Hub's cache are links to that repository's blobs: these are in.
    """
    root = folder.resolve()
    inside = [
        root,
        *(parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"),
    ]
    links = []
    for parent, folders, files in os.walk(root):
        if Path(parent) == root and "code" in folders:
            folders.remove("code")
        links += [path for name in (*folders, *files) if _is_link(path := Path(parent, name))]
    return [link for link in links if not any(_leads_into(link, allowed) for allowed in inside)]


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:  # as in /proc, where some may not even be asked about
        return True


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        return Path(os.path.realpath(link)).is_relative_to(folder)
    except OSError:  # it leads to a link that may not be read
        return False


def model_root(folder: Path) -> Path:
    """The folder with config.json: this one, or the only one in it that has one."""
    if (folder / "config.json").is_file():
        return folder
    inner = [path.parent for path in folder.glob("*/config.json") if path.parent.name != "code"]
    return inner[0] if len(inner) == 1 else folder
