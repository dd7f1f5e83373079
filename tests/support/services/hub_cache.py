"""A cache of the Hub in which a name of the documents stands for a folder of this machine."""

from pathlib import Path

REVISION = "0" * 40


def cached(cache: Path, name: str, model: Path) -> Path:
    """Put a model's files into a cache under a name of the Hub; return the cache."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    for path in model.iterdir():
        if path.is_file():
            (snapshot / path.name).write_bytes(path.read_bytes())
    return cache
