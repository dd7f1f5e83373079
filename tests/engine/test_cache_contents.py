"""Every step reads what it should: a model check of the engine against a simulated device.

The device (`simulated_device.py`) has no tensors. Each cell of its KV cache holds all that a real
cell is computed from: the ids up to there, the adapter and the picture. Slots of the host's memory
hold copies of such cells. Passes run in the order of the device's stream: a pass runs the block
copies of its batch, writes its cells, then reads every cell that its rows read. A placeholder takes
the token that the step before has sampled, as on a device. The next token is a function of the
cell, so the oracle knows the completion of each request without an engine.

A game (`random_games.py`) sends random requests to an engine of random sizes, aborts some and lets
steps fail, after which the memory is junk and the engine runs its self-test.
"""

import random
from collections import Counter
from functools import cache

import pytest

from tests.engine.random_games import Game

SEEDS = range(12)
QUICK_SEEDS = range(2)  # of the tests that are not slow
GAMES = 6  # of each seed, with overlap and without


@cache
def play(seed: int, overlaps: bool) -> Counter[str]:
    """Play the games of a seed; return the events. Raises the first failure."""
    rnd = random.Random(seed)
    tallies = [Game(rnd, overlaps).play() for _ in range(GAMES)]
    return sum(tallies, Counter())


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize(
    "seed",
    [seed if seed in QUICK_SEEDS else pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS],
)
def test_every_step_reads_the_right_contents(seed: int, overlaps: bool) -> None:
    play(seed, overlaps)


@pytest.mark.slow
@pytest.mark.parametrize("overlaps", [False, True])
def test_the_games_have_all_that_they_are_for(overlaps: bool) -> None:
    tally = sum((play(seed, overlaps) for seed in SEEDS), Counter())
    required = {"preemptions", "restored", "aborts", "recoveries"}
    # A draft needs the tokens before it, so there is none with overlap.
    assert set(tally) == (required if overlaps else required | {"accepted"})
