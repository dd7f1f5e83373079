"""Model folders that cannot be served."""

import json
import shutil
from pathlib import Path

from tests.support.servers import DEMO_MODEL


def broken_model(
    folder: Path, *, without: str = "", write: tuple[str, str] = ("", ""), **config: object
) -> Path:
    """Copy the demo model without a file, with other content of one, or with another config."""
    shutil.copytree(DEMO_MODEL, folder)
    if without:
        (folder / without).unlink()
    if write[0]:
        (folder / write[0]).write_text(write[1])
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder
