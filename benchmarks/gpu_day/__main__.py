"""Runs the parts of a GPU day one after another, failed ones too, and writes the report.

Results are in the report as they come. `benchmarks/gpu_day.sh` prepares the environment.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu_day.plan import PARTS, TOTAL_S, Part
from benchmarks.gpu_day.report import is_ok, write_report
from benchmarks.gpu_day.supervise import LEAST_S, ROOT, adopt_orphans, run_part

# The report must be written when the last part has been killed.
RESERVE_S = 5.0


def main() -> int:
    """Run the parts; exit with 1 if any failed."""
    args = parse_arguments()
    parts = tuple(part for part in PARTS if not args.only or part.name in args.only)
    args.out.mkdir(parents=True, exist_ok=True)
    adopt_orphans()
    return run_all(parts, args.device or find_device(), args.out, args.minutes * 60)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="gpu_day", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-day"), help="folder of the report")
    parser.add_argument("--minutes", type=float, default=TOTAL_S / 60, help="default: 9")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: a GPU if there is one")
    parser.add_argument("--only", nargs="*", choices=[part.name for part in PARTS], default=[])
    return parser.parse_args()


def find_device() -> str:
    """Return cuda if the driver shows a GPU. torch is not asked, as it may not even import."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return "cuda"
    try:
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "cpu"
    return "cuda" if "GPU" in shown.stdout else "cpu"


def run_all(parts: tuple[Part, ...], device: str, folder: Path, seconds: float) -> int:
    """Run the parts within a number of seconds; return 1 if any failed, else 0."""
    deadline = time.monotonic() + seconds - RESERVE_S
    started = time.monotonic()
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "device": device,
        "commit": _commit(),
        "Python": f"{platform.python_version()} ({sys.executable})",
        "processors": os.cpu_count(),
        "seconds": 0.0,
    }
    with tempfile.TemporaryDirectory() as scratch, (folder / "output.txt").open("wb") as output:
        results = Path(scratch) / "results.jsonl"

        def write() -> None:
            facts["seconds"] = round(time.monotonic() - started, 1)
            write_report(folder, parts, results, facts)

        for part in parts:
            left = deadline - time.monotonic()
            if left < LEAST_S:
                break
            print(f"{part.title} ({min(left, part.limit_s):.0f} s at most)", flush=True)
            output.write(f"\n=== {part.title}\n".encode())
            output.flush()
            run_part(part, device, results, output, left, write)
            write()
        write()
    report = json.loads((folder / "report.json").read_text())
    for part in report["parts"]:
        print(f"{part['status']:8} {part['title']}")
    print(f"The report is {folder / 'report.md'}", flush=True)
    return 0 if is_ok(report) else 1


def _commit() -> str:
    """Return the commit of the code, as git or a file of the checkout knows it."""
    try:
        shown = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return shown.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
