"""The sampler: samples the next token of each row of logits, vectorised over the batch.

A feature that no row uses costs nothing. Order, as in TGI: penalties and bias, grammar, then the
rules of container.model.sampling.rules. Randomness is a number in [0, 1) computed from a row's
seed and its token's index alone (never drawn from a generator), which picks a token by inverse
transform; so a request with a seed gets the same tokens in every batch.
"""

import torch

from container.engine.model_runner import Sampled
from container.engine.sequence import Sequence
from container.messages.engine import LogprobMode, SamplingParams
from container.model.async_copy import AsyncHostCopy, take_rows, to_device
from container.model.kernels.cpu import Kernels
from container.model.sampling import logits_processors
from container.model.sampling.device import choose_on_device
from container.model.sampling.host import choose_on_host, params_of, rows_where
from container.model.sampling.logits_processors import constrain
from container.model.sampling.logprobs import (
    PromptScores,
    RowLogprobs,
    prompt_scores,
    row_logprobs,
)
from container.model.sampling.rng import row_numbers


class PendingSamples:
    """Sampled tokens, possibly still being computed. `token_ids` is [rows], on the device."""

    def __init__(
        self, token_ids: torch.Tensor, logprobs: list[RowLogprobs], sequences: list[Sequence]
    ) -> None:
        self.token_ids = token_ids
        self._host_copy = AsyncHostCopy()
        self._ids = self._host_copy.add(token_ids)
        self._logprobs = [
            RowLogprobs(
                logprobs_of.rows,
                *map(
                    self._host_copy.add, (logprobs_of.picked, logprobs_of.ids, logprobs_of.values)
                ),
            )
            for logprobs_of in logprobs
        ]
        self._tops = [sequence.params.top_logprobs for sequence in sequences]
        self._host_copy.record(token_ids.device)

    def get_output(self) -> list[Sampled]:
        """Wait for the tokens and their log-probabilities."""
        self._host_copy.wait()
        sampled = [Sampled(token_id) for token_id in self._ids.tolist()]
        for group in self._logprobs:
            columns = (group.picked.tolist(), group.ids.tolist(), group.values.tolist())
            for row, picked, ids, values in zip(group.rows, *columns, strict=True):
                count = self._tops[row]
                top = tuple(zip(ids[:count], values[:count], strict=True))
                sampled[row] = Sampled(sampled[row].token_id, picked, top)
        return sampled


class Sampler:
    """Owns the token counts that penalties need; used by the runner only.

    `counts_prompt`: whether TGI's penalties count the prompt's tokens; false if an encoder reads
    the prompt. `reads_logits`: sample logits in host memory by the host's code, which
    reads them; otherwise on the logits' device, without waiting.
    """

    def __init__(
        self,
        end_token_ids: frozenset[int] = frozenset(),
        *,
        kernels: Kernels | None = None,
        counts_prompt: bool = True,
        reads_logits: bool = True,
    ) -> None:
        self._kernels = kernels
        self._end_token_ids = end_token_ids
        self._counts_prompt = counts_prompt
        self._reads_logits = reads_logits
        self._counts = logits_processors.TokenCounts()

    def prompt_scores(
        self, logits: torch.Tensor, following: list[int], params: SamplingParams
    ) -> PromptScores:
        """Return the log-probability of the token that follows each row of logits."""
        return prompt_scores(logits, following, params.prompt_top_logprobs, self._kernels)

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[Sampled]:
        """Sample a token for each row of logits [rows, vocabulary], float32; changes the logits."""
        return self.sample_async(logits, sequences).get_output()

    def sample_async(self, logits: torch.Tensor, sequences: list[Sequence]) -> PendingSamples:
        """Begin to sample a token for each row; changes the logits."""
        raw_rows = rows_where(sequences, lambda p: p.logprobs is LogprobMode.RAW)
        raw = torch.log_softmax(take_rows(logits, raw_rows), -1) if raw_rows else None
        self._adjust(logits, sequences)
        token_ids = self._choose(logits, sequences)
        logprobs = []
        if raw is not None:
            logprobs.append(row_logprobs(raw, raw_rows, token_ids, sequences))
        rows = rows_where(sequences, lambda p: p.logprobs is LogprobMode.PROCESSED)
        if rows:
            processed = take_rows(logits, rows).log_softmax(-1)
            logprobs.append(row_logprobs(processed, rows, token_ids, sequences))
        return PendingSamples(token_ids, logprobs, sequences)

    def _choose(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        if self._reads_logits and logits.device.type == "cpu":
            chosen = choose_on_host(logits, sequences, self._kernels)
            return to_device(chosen, logits.device, torch.int64)
        rows = list(range(len(sequences)))
        return choose_on_device(logits, params_of(sequences, rows), row_numbers(sequences, rows))

    def _adjust(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        if rows_where(sequences, lambda p: p.watermark is not None):
            logits_processors.watermark(logits, sequences)
        logits_processors.penalise(
            logits, sequences, self._counts, counts_prompt=self._counts_prompt
        )
        if rows_where(sequences, lambda p: bool(p.logit_bias)):
            logits_processors.add_bias(logits, sequences)
        if rows := rows_where(sequences, lambda p: bool(p.allowed_token_ids)):
            logits_processors.hide_others(logits, rows, sequences)
        if rows := rows_where(sequences, lambda p: bool(p.bad_words)):
            logits_processors.hide_bad_words(logits, rows, sequences)
        rows = [row for row, sequence in enumerate(sequences) if sequence.constraint is not None]
        if rows:
            constrain(logits, rows, sequences)
        if rows_where(sequences, lambda p: p.min_tokens > 0):
            logits_processors.hide_ends(logits, sequences, self._end_token_ids)
