"""Makes the folder of wheels for a machine that reaches no package index, and unpacks it there.

    python benchmarks/gpu_day/wheels.py fetch FOLDER       # here
    python benchmarks/gpu_day/wheels.py unpack FOLDER SITE  # there; then PYTHONPATH=SITE

The folder has the image's locked packages, hashes checked, for that machine's Python; torch and the
large packages that come along with it are the machine's own. It imports the standard library only.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "image" / "locks" / "server.lock"
# Large, and on every machine that has torch and what is usual beside it.
LEFT_OUT = {"joblib", "narwhals", "numpy", "pillow", "scikit-learn", "scipy", "threadpoolctl"}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 27, 28, 31, 34, 35)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]
LIMIT_MB = 60


def locked(text: str, left_out: set[str]) -> dict[str, str]:
    """Return the requirements of a lock by name, hashes included, but for those left out."""
    blocks = re.finditer(r"^([A-Za-z0-9_.-]+)==(?:.*\\\n)*.*$", text, re.M)
    return {block[1]: block[0] for block in blocks if block[1] not in left_out}


def fetch(folder: Path, python: str, limit_mb: int) -> int:
    """Download the wheels; return their size in bytes. Raises SystemExit above the limit."""
    requirements = locked(LOCK.read_text(), LEFT_OUT)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(requirements.values()) + "\n")
        file.flush()
        platforms = [option for name in PLATFORMS for option in ("--platform", name)]
        subprocess.run(
            [
                sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                "--no-deps", "--only-binary=:all:", "--python-version", python,
                "--implementation", "cp", *platforms, "--dest", str(folder),
                "--requirement", file.name,
            ],
            check=True,
        )  # fmt: skip
    wheels = sorted(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    for wheel in sorted(wheels, key=lambda wheel: -wheel.stat().st_size)[:10]:
        print(f"{wheel.stat().st_size / 1e6:6.1f} MB  {wheel.name}")
    print(f"{size / 1e6:6.1f} MB in {len(wheels)} wheels for Python {python}")
    if size > limit_mb * 1e6:
        raise SystemExit(f"{size / 1e6:.1f} MB of wheels, the limit is {limit_mb}")
    return size


def unpack(folder: Path, site: Path) -> int:
    """Unpack all wheels into one folder for PYTHONPATH; return how many there were."""
    site.mkdir(parents=True, exist_ok=True)
    wheels = sorted(folder.glob("*.whl"))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda wheel: _unpack_one(wheel, site), wheels))
    for data in site.glob("*.data"):
        for part in ("purelib", "platlib"):
            if (data / part).is_dir():
                shutil.copytree(data / part, site, dirs_exist_ok=True)
        shutil.rmtree(data)
    return len(wheels)


def _unpack_one(wheel: Path, site: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def main() -> None:
    """Fetch or unpack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="download the wheels into FOLDER")
    fetching.add_argument("folder", type=Path)
    fetching.add_argument("--python", default="3.12", help="the other machine's (%(default)s)")
    fetching.add_argument("--limit-mb", type=int, default=LIMIT_MB)
    unpacking = commands.add_parser("unpack", help="unpack the wheels of FOLDER into SITE")
    unpacking.add_argument("folder", type=Path)
    unpacking.add_argument("site", type=Path)
    args = parser.parse_args()
    if args.command == "fetch":
        fetch(args.folder, args.python, args.limit_mb)
    else:
        print(f"unpacked {unpack(args.folder, args.site)} wheels")


if __name__ == "__main__":
    main()
