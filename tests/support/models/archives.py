"""Model archives for tests."""

import io
import tarfile
from pathlib import Path


def archive(path: Path, **files: str) -> str:
    """Write a .tar.gz of small files; its file:// URL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path.as_uri()
