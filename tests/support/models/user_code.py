"""Model folders with user code, and a wheel for its requirements."""

import shutil
import zipfile
from pathlib import Path

from tests.support.servers import DEMO_MODEL


def folder_with(folder: Path, program: str, *, with_model: bool = False) -> Path:
    """A model's folder with `code/inference.py`; the demo model beside it if asked for."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "inference.py").write_text(program)
    if with_model:
        for path in DEMO_MODEL.iterdir():
            shutil.copy(path, folder)
    return folder


def write_wheel(folder: Path, name: str, program: str) -> None:
    """Write a pure Python wheel `name` 1.0 with one module."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": program,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(path, text)
