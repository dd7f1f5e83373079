"""Engines whose model is split over ranks or spread over devices, in a process of their own."""

import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from transformers import AutoTokenizer

from container.messages.engine import EngineInfo
from container.model.engine_loader import load_engine
from container.settings.settings import Settings
from tests.support.engines import Job, ids, run
from tests.support.models import tiny_models
from tests.support.servers import DEMO_MODEL


def save(name: str, folder: Path) -> Path:
    """Write a tiny model with a tokenizer."""
    tiny_models.make(name).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(folder)
    return folder


# Ranks belong to their process: pytest's own must not become one. Processes are forked from one
# that has imported this module, since that takes far longer than a test's engine runs.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def generate(
    folder: Path, environ: Mapping[str, str], jobs: list[Job]
) -> tuple[EngineInfo, list[list[int]]]:
    """Load a model as the engine process does, with these settings, and run jobs."""
    info, [output] = generate_each(folder, environ, jobs)
    return info, output


def generate_each(
    folder: Path, environ: Mapping[str, str], *runs: list[Job]
) -> tuple[EngineInfo, list[list[list[int]]]]:
    """Do so with one list of jobs after another, in one engine; ids by run and job."""
    with ProcessPoolExecutor(1, PROCESSES) as pool:
        return pool.submit(_generate, folder, dict(environ), runs).result(timeout=180)


def _generate(
    folder: Path, environ: dict[str, str], runs: tuple[list[Job], ...]
) -> tuple[EngineInfo, list[list[list[int]]]]:
    os.environ |= {"HF_MODEL_ID": str(folder), "DTYPE": "float32"} | environ
    engine, info = load_engine(Settings.from_environ(os.environ), lambda _: None)
    outputs = []
    for jobs in runs:
        events = run(engine, jobs)
        outputs.append([ids(events[index]) for index in range(len(jobs))])
    return info, outputs
