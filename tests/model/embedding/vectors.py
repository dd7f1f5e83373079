"""Vectors of an embedder of this server, and how close they are to others."""

from pathlib import Path

import numpy as np
import torch

from container.messages.embedder import Embed, EmbedInput, Truncation
from container.model.embedder_loader import load_model
from container.model.embedding.embedder import Embedder
from container.model.embedding.text_encoder import EncodedText
from container.model.fallbacks import Fallbacks
from tests.support.models import prepared

WORDS = ["the", "cat", "sat", "on", "mats", "while", "deep", "learning", "was", "taught", "bread"]
CPU = torch.device("cpu")


def random_texts(count: int, longest: int) -> list[str]:
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, longest, count)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Embedder:
    embedder = Embedder(load_model(folder, CPU, dtype), CPU, prepared.cpu_kernels(), Fallbacks())
    embedder.prepare()
    return embedder


def encode(
    embedder: Embedder,
    inputs: list[EmbedInput],
    prompt: str | None = None,
    cut: Truncation = Truncation.REFUSE,
) -> list[EncodedText]:
    return embedder.encode(Embed(1, inputs, "input", prompt, cut))


def vectors(
    embedder: Embedder,
    inputs: list[EmbedInput],
    prompt: str | None = None,
    cut: Truncation = Truncation.REFUSE,
) -> np.ndarray:
    outputs = embedder.run(encode(embedder, inputs, prompt, cut))
    rows = np.stack([np.frombuffer(row.raw, np.float32) for row in outputs])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cosines(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return (got * expected / np.linalg.norm(expected, axis=1, keepdims=True)).sum(1)
