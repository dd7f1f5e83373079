"""The arithmetic of vectors and scores: norms, cosines, late interactions, probabilities."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def normalized(vectors: Floats) -> Floats:
    """Divide each row by its length; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Floats = vectors / np.maximum(lengths, 1e-12)
    return result


def packed_bits(vector: Floats, *, is_signed: bool) -> list[int]:
    """Return the signs of a vector, eight in a byte: 1 for numbers that are not negative."""
    packed: Any = np.packbits(vector >= 0).astype(np.int16)
    numbers: list[int] = (packed - 128 if is_signed else packed).tolist()
    return numbers


def max_similarity(query: Floats, document: Floats, *, is_mean: bool = False) -> float:
    """Return the sum over the query's vectors of the largest product with one of the document's.

    `is_mean` divides it by the number of the query's vectors. Without vectors it is 0.
    """
    if not len(query) or not len(document):
        return 0.0
    total = float((query @ document.T).max(axis=1).sum())
    return total / len(query) if is_mean else total


def probabilities(logits: Floats) -> Floats:
    """Return the sigmoid of a single score, or the softmax over several labels."""
    exact: Any = logits.astype(np.float64)
    if logits.shape[1] == 1:
        exact = 1 / (1 + np.exp(-exact))
    else:
        exact = np.exp(exact - exact.max(axis=1, keepdims=True))
        exact /= exact.sum(axis=1, keepdims=True)
    result: Floats = exact.astype(np.float32)
    return result


def cosines(source: Floats, others: Floats) -> Floats:
    """Return the cosine between one vector and each row of others."""
    result: Floats = normalized(others) @ normalized(source[None])[0]
    return result
