"""Where in a model's folder its files are: archives come with and without a folder in them."""

from pathlib import Path


def model_root(folder: Path) -> Path:
    """The folder with config.json: this one, or the only one in it that has one."""
    if (folder / "config.json").is_file():
        return folder
    inner = [path.parent for path in folder.glob("*/config.json") if path.parent.name != "code"]
    return inner[0] if len(inner) == 1 else folder
