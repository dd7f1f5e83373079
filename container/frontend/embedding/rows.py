"""The rows of an embedder's answer, as arrays."""

from dataclasses import dataclass

import numpy as np

from container.frontend.embedding.vectors import Floats
from container.messages.embedder import Embedded, EmbedderInfo


@dataclass(frozen=True, slots=True)
class Rows:
    """One row for each input: float32 [inputs, width], and the tokens of all inputs.

    `info` describes the model that computed them, which may have exited before they are rendered.
    """

    values: Floats
    num_tokens: int
    info: EmbedderInfo


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Several rows for each input: float32 [rows, width], and the tokens of all."""

    values: list[Floats]
    num_tokens: int
    info: EmbedderInfo


def rows_of(answer: Embedded, info: EmbedderInfo) -> Rows:
    """Read an answer with one row for each input."""
    values = np.frombuffer(answer.rows, np.float32).reshape(-1, answer.width)
    return Rows(values, answer.num_tokens, info)


def token_rows_of(answer: Embedded, info: EmbedderInfo, num_inputs: int) -> TokenRows:
    """Read an answer with several rows for each input."""
    values = np.frombuffer(answer.rows, np.float32).reshape(-1, max(1, answer.width))
    ends = np.cumsum(answer.lengths or [1] * num_inputs)
    return TokenRows(np.split(values, ends[:-1]), answer.num_tokens, info)
