"""Break a server on purpose and print who saw what: `python -m benchmarks.chaos`.

Each fault happens with eight streams and eight plain requests in flight. Takes some twenty minutes,
and as long as `--soak-minutes` more. Needs root for the full disk, which is left out otherwise.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchmarks.chaos import table, watch
from benchmarks.chaos.balancer import rolling_restart
from benchmarks.chaos.disk import NoMount, disk_faults, small_disk
from benchmarks.chaos.faults import HANDLERS, RANKS, SERVING, process_faults
from benchmarks.chaos.load import HANDLER_PROGRAM, Kind, handler_kinds, kinds
from benchmarks.chaos.network import network_faults
from benchmarks.chaos.soak import soak
from benchmarks.chaos.trial import Fault, Row, Trial
from tests.support.models.embedders import save_embedder
from tests.support.models.tiny_models import save_endless
from tests.support.models.user_code import folder_with
from tests.support.servers import DEMO_MODEL, serving

# Longer answers than this make each fault last longer, no more.
ANSWER_S = 6.0
BODIES = [
    ("/generate", watch.SHORT),
    ("/v1/chat/completions", watch.SHORT_CHAT),
    ("/generate", watch.SHORT_GRAMMAR),
]
HANDLER_BODIES: list[tuple[str, dict[str, object]]] = [("/invocations", {"name": "a", "parts": 2})]


def main() -> int:
    """Run the faults, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="faults whose name matches this expression")
    parser.add_argument("--soak-minutes", type=float, default=60)
    parser.add_argument("--folder", type=Path, help="work in this folder, and keep the logs in it")
    parser.add_argument("--json", type=Path, help="write the rows here, with the errors seen")
    options = parser.parse_args()
    rows: list[Row] = []
    with _working_folder(options.folder) as folder:
        for row in _rows(folder, options.only, options.soak_minutes):
            rows.append(row)
            print(" | ".join(table.cells(row)), row.messages, flush=True)
    print(table.write(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0 if all(row.is_sound for row in rows) else 1


@contextmanager
def _working_folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(name)


def _rows(folder: Path, only: str, soak_minutes: float) -> Iterator[Row]:
    model, embedder = folder / "endless", save_embedder(folder / "embedder", "bert")
    save_endless(model, tokenizer_from=DEMO_MODEL)
    everything = {"WORKERS": "2", "EMBEDDING_MODEL_ID": str(embedder)}
    texts = [*BODIES, ("/embed", watch.SHORT_TEXTS)]

    def matching(faults: list[Fault]) -> list[Fault]:
        return [fault for fault in faults if re.search(only, fault.name)]

    faults = matching(process_faults(SERVING) + network_faults())
    yield from _run(faults, texts, folder, model, everything)
    ranks = {"TENSOR_PARALLEL": "2", "SM_NUM_GPUS": "0"}
    for name in RANKS:  # each on a server of its own, which ends with the fourth death
        faults = matching(process_faults((name,), where=" (two ranks)"))
        yield from _run(faults, BODIES, folder, model, ranks)
    code = folder_with(folder / "code", HANDLER_PROGRAM)
    handlers = {"HANDLER_CONCURRENCY": "32"}
    faults = matching(process_faults(HANDLERS))
    yield from _run(faults, HANDLER_BODIES, folder, code, handlers, handler_kinds)
    yield from _full_disk(matching, folder, model)
    if re.search(only, "rolling restart"):
        yield rolling_restart(model, folder)
    if soak_minutes and re.search(only, "soak"):
        yield soak(model, folder, soak_minutes * 60)


def _full_disk(
    matching: Callable[[list[Fault]], list[Fault]], folder: Path, model: Path
) -> Iterator[Row]:
    if not matching(disk_faults(folder)):
        return
    try:
        with small_disk(folder / "disk") as disk:
            settings = {"TMPDIR": str(disk)}
            yield from _run(matching(disk_faults(disk)), BODIES, folder, model, settings)
    except NoMount as error:
        print(f"left out: {error}", file=sys.stderr)


def _run(
    faults: list[Fault],
    bodies: list[tuple[str, dict[str, object]]],
    folder: Path,
    model: Path,
    settings: dict[str, str],
    make_kinds: Callable[[int], list[Kind]] = kinds,
) -> Iterator[Row]:
    """Run faults on one server, and on a new one when it has ended."""
    while faults:
        number = len(list(folder.glob("server-*.log")))
        with serving(folder / f"server-{number}.log", model, **settings) as server:
            trial = Trial(server, bodies, make_kinds)
            trial.calibrate(ANSWER_S)
            while faults and server.process.poll() is None:
                yield trial.run(faults.pop(0))


if __name__ == "__main__":
    sys.exit(main())
