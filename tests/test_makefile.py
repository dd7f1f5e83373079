"""Targets of the Makefile pass on what the caller names."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _commands(*arguments: str, **environ: str) -> str:
    """Return what make would run; nothing runs."""
    outer = {"MODEL", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"}  # those of a make that runs the tests
    unset = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, env=unset | environ, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "environ"), [(["MODEL=/models/a b"], {}), ([], {"MODEL": "/models/a b"})]
)
def test_bench_measures_the_model_that_is_named(
    arguments: list[str], environ: dict[str, str]
) -> None:
    assert 'benchmarks.serving --model "/models/a b" --json' in _commands(
        "bench", *arguments, **environ
    )


def test_bench_measures_random_weights_by_default() -> None:
    commands = _commands("bench")
    assert "benchmarks.serving" in commands
    assert "--model" not in commands
