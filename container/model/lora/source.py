"""Finds the folder of an adapter: a folder that the client names, or a download from the Hub."""

import os
from collections.abc import Callable
from pathlib import Path

from container.errors import InvalidParameter, one_line
from container.files import find_folder
from container.model.lora.checkpoint import CONFIG, WEIGHTS

Download = Callable[..., str]  # of huggingface_hub.snapshot_download's parameters
# Of a repository only an adapter's files, wherever they are: others may be of any size.
PATTERNS = [f"*{CONFIG}", f"*{WEIGHTS}"]


def find_adapter(source: str, download: Download) -> Path:
    """Return the folder of an adapter, downloaded if necessary. Raises InvalidParameter.

    The folder may be the only one with an adapter in the folder that is named.
    """
    folder = find_folder(source) or _download(source, download)
    if os.path.isfile(folder / CONFIG):
        return folder
    inner = [path.parent for path in folder.glob(f"*/{CONFIG}")]
    return inner[0] if len(inner) == 1 else folder


def _download(source: str, download: Download) -> Path:
    if source.startswith(("/", "~", ".")) or source.count("/") != 1:
        raise InvalidParameter(
            f"`src`: there is no folder {source[:200]!r} that can be read, and it is not a Hub id "
            "(owner/name)",
            field="src",
        )
    name, _, revision = source.partition("@")
    try:
        return Path(download(name, revision=revision or None, allow_patterns=PATTERNS))
    except Exception as error:  # the Hub's client can raise many errors
        raise InvalidParameter(
            f"`src`: {source[:200]} is no folder and cannot be downloaded: {one_line(error)}",
            field="src",
        ) from error
