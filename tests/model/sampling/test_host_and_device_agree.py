"""Host, host without its fast path, and device choose the same tokens by the same rules."""

from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from container.engine.sequence import Sequence
from container.messages.engine import LogprobMode, SamplingParams, Watermark
from container.model.sampling import host
from container.model.sampling.device import DeviceSelector
from container.model.sampling.rng import uniform
from container.model.sampling.sampler import Sampler
from tests.support.sampling_reference import ROUNDING, Reference

VOCABULARY = 700
HIDDEN = -torch.inf

# Each parameter is off about half of the time, so that rows use few and many of them.
PARAMS = st.builds(
    SamplingParams,
    max_new_tokens=st.just(9),
    seed=st.integers(0, 2**40),
    temperature=st.just(0.0) | st.floats(0.1, 4.0),
    top_k=st.just(0) | st.integers(1, 2 * VOCABULARY),
    top_p=st.just(1.0) | st.floats(0.001, 0.999),
    typical_p=st.just(1.0) | st.floats(0.001, 0.999),
    min_p=st.just(0.0) | st.floats(0.001, 1.0),
    repetition_penalty=st.just(1.0) | st.floats(0.3, 3.0),
    context_frequency_penalty=st.just(0.0) | st.floats(-2.0, 2.0),
    frequency_penalty=st.just(0.0) | st.floats(-2.0, 2.0),
    presence_penalty=st.just(0.0) | st.floats(-2.0, 2.0),
    logit_bias=st.just({})
    | st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-9.0, 9.0), max_size=3),
    watermark=st.none() | st.builds(Watermark, st.floats(0.1, 0.9), st.floats(0.5, 4.0)),
    min_tokens=st.sampled_from([0, 0, 9]),
    logprobs=st.sampled_from(LogprobMode),
)
TOKEN_IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30)


def _sequences(rows: list[tuple[SamplingParams, list[int], list[int]]]) -> list[Sequence]:
    sequences = []
    for params, prompt, completion in rows:
        sequence = Sequence(0, prompt, params)
        sequence.token_ids += completion
        sequences.append(sequence)
    return sequences


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(PARAMS, TOKEN_IDS, TOKEN_IDS), min_size=1, max_size=6),
    seed=st.integers(0, 2**30),
    scale=st.sampled_from([0.3, 3.0, 20.0]),
    share_hidden=st.sampled_from([0.0, 0.9]),
    longest=st.sampled_from([1, 40, 1024]),
)
def test_host_and_device_choose_the_same_token(
    rows: list[tuple[SamplingParams, list[int], list[int]]],
    seed: int,
    scale: float,
    share_hidden: float,
    longest: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), VOCABULARY, generator=generator) * scale
    hidden = torch.rand(logits.shape, generator=generator) < share_hidden
    hidden[:, seed % VOCABULARY] = False
    logits.masked_fill_(hidden, HIDDEN)
    ends = frozenset({(seed + 1) % VOCABULARY})
    sequences = _sequences(rows)
    on_host = Sampler(ends).sample(logits.clone(), sequences)
    with mock.patch.object(host, "can_use_topk_path", return_value=False):
        by_whole_rows = Sampler(ends).sample(logits.clone(), sequences)
    with mock.patch.object(DeviceSelector, "longest_list", longest):
        on_device = Sampler(ends, reads_logits=False).sample(logits.clone(), sequences)
    adjusted = logits.clone()
    Sampler(ends)._adjust(adjusted, sequences)
    for row, sequence in enumerate(sequences):
        chosen = {tokens[row].token_id for tokens in (on_host, by_whole_rows, on_device)}
        if len(chosen) > 1:  # only on either side of a limit
            number = uniform(sequence.seed, sequence.completion_len)
            assert Reference(adjusted[row], sequence.params, number).margin < ROUNDING
