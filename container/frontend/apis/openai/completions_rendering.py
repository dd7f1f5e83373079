"""Completions as OpenAI's answers and chunks."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from container.frontend.apis.openai.chat_rendering import FINGERPRINT, FINISH_REASONS
from container.frontend.apis.openai.completions_schema import CompletionRequest
from container.frontend.apis.openai.token_details import (
    prompt_logprobs,
    prompt_tokens,
    prompt_tops,
    shown,
    token_ids,
    with_own,
)
from container.frontend.generation.completion import Completion, TextEvent, TokenText
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.running_group import GroupEvent, RunningGroup
from container.frontend.generation.running_request import RunningRequest
from container.frontend.web.responses import deadline_mark

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Completions:
    """A started request, with what its rendering needs."""

    running: RunningGroup
    completion_request: CompletionRequest
    model: str
    id: str
    created: int
    prompts: list[str]
    offsets: dict[int, int] = field(default_factory=dict)
    unsent_ids: dict[int, list[int]] = field(default_factory=dict)

    def envelope(self) -> Json:
        """The fields that every answer and every chunk has."""
        return {
            "object": "text_completion",
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }

    @property
    def usage(self) -> Json:
        """Token counts, summed over the prompts."""
        requests = self.running.requests
        prompt = sum(running.prompt_tokens for running in requests)
        new = sum(running.completion_tokens for running in requests)
        cached = sum(running.prompt.cached_tokens for running in requests)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def choice_index(self, prompt_index: int, seq_index: int) -> int:
        """The place of a choice among those of all prompts."""
        return prompt_index * (self.completion_request.n or 1) + seq_index


def answer(completions: Completions) -> Json:
    """A whole answer."""
    choices = [
        _choice(completions, index, completion)
        for index, running in enumerate(completions.running.requests)
        for completion in running.completions
    ]
    return completions.envelope() | {"choices": choices, "usage": completions.usage}


def _choice(completions: Completions, prompt_index: int, completion: Completion) -> Json:
    completion_request = completions.completion_request
    running = completions.running.requests[prompt_index]
    assert completion.finish_reason is not None
    choice: Json = {
        "index": completions.choice_index(prompt_index, completion.seq_index),
        "text": completions.prompts[prompt_index] + completion.text,
        "logprobs": None,
        "finish_reason": FINISH_REASONS[completion.finish_reason],
        **deadline_mark(completion.finish_reason),
    }
    if completion_request.logprobs is not None:
        tokens, tops = _scored(completions, running, completion.events, is_first=True)
        as_id = bool(completion_request.return_tokens_as_token_ids)
        choice["logprobs"] = _logprobs(tokens, tops, start=0, as_id=as_id)
    if completion_request.return_token_ids:
        choice |= {"prompt_token_ids": running.prompt_ids}
        choice |= {"token_ids": token_ids(completion.events)}
    if completion_request.prompt_logprobs is not None:
        choice["prompt_logprobs"] = prompt_logprobs(running)
    return choice


def chunks(completions: Completions, group_event: GroupEvent) -> Iterator[Json]:
    """Render an event of a stream as chunks."""
    event, completion_request = group_event.event, completions.completion_request
    index = completions.choice_index(group_event.index, event.seq_index)
    is_first = index not in completions.offsets
    running = completions.running.requests[group_event.index]
    text = (completions.prompts[group_event.index] if is_first else "") + event.text
    events = [] if event.is_cut else [event]
    tokens, tops = _scored(completions, running, events, is_first=is_first)
    start = completions.offsets.get(index, 0)
    completions.offsets[index] = start + sum(map(_length, tokens))
    logprobs = None
    if completion_request.logprobs is not None:
        as_id = bool(completion_request.return_tokens_as_token_ids)
        logprobs = _logprobs(tokens, tops, start=start, as_id=as_id)
    completions.unsent_ids.setdefault(index, []).extend(token_ids(events))
    if text or logprobs or event.finish_reason is not None:
        choice = {"index": index, "text": text, "logprobs": logprobs}
        yield _chunk(completions, event, choice, running)
    if completions.running.is_finished and completion_request.includes_usage:
        yield completions.envelope() | {"choices": [], "usage": completions.usage}


def _chunk(
    completions: Completions, event: TextEvent, choice: Json, running: RunningRequest
) -> Json:
    """Finish the choice of a chunk with its finish reason and ids; return the chunk."""
    completion_request, reason = completions.completion_request, event.finish_reason
    finish_reason = None if reason is None else FINISH_REASONS[reason]
    choice |= {"finish_reason": finish_reason} | deadline_mark(reason)
    ids = completions.unsent_ids.pop(choice["index"])
    if completion_request.return_token_ids:
        choice["token_ids"] = ids
        if running.completions[event.seq_index].num_tokens == len(ids):
            choice["prompt_token_ids"] = running.prompt_ids
    chunk = completions.envelope() | {"choices": [choice]}
    if completion_request.includes_running_usage:
        return chunk | {"usage": completions.usage}
    return chunk | {"usage": None} if completion_request.includes_usage else chunk


def _scored(
    completions: Completions, running: RunningRequest, events: list[TextEvent], *, is_first: bool
) -> tuple[list[TokenText], list[list[TokenText]]]:
    """Return the tokens that have log-probabilities, and the most likely ones at their positions.

    In an echo the special tokens of the prompt are text like all others.
    """
    completion_request = completions.completion_request
    tokens = [event.token for event in events]
    tops = [with_own(event.top, event.token) for event in events]
    if not (is_first and completion_request.echo and completion_request.logprobs is not None):
        return tokens, tops
    prompt = [replace(token, is_special=False) for token in prompt_tokens(running)]
    return prompt + tokens, prompt_tops(running) + tops


def _length(token: TokenText) -> int:
    """How many characters of the text a token is."""
    return 0 if token.is_special else len(token.text)


def _by_text(top: list[TokenText], *, as_id: bool) -> Json:
    """Map texts to log-probabilities; of tokens with the same text, the likelier one counts."""
    likeliest_last = sorted(top, key=lambda token: token.logprob or 0.0)
    by_text = {shown(token, as_id=as_id): token.logprob for token in likeliest_last}
    return {shown(token, as_id=as_id): by_text[shown(token, as_id=as_id)] for token in top}


def _logprobs(
    tokens: list[TokenText], tops: list[list[TokenText]], *, start: int, as_id: bool
) -> Json:
    """OpenAI's parallel lists; offsets count the characters of the tokens before.

    Each map of likely tokens has the token that is there, too; a prompt's first place has none.
    """
    lengths = [_length(token) for token in in_pieces(tokens)]
    return {
        "tokens": [shown(token, as_id=as_id) for token in in_pieces(tokens)],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_by_text(top, as_id=as_id) or None for top in in_pieces(tops)],
        "text_offset": list(accumulate(lengths[:-1], initial=start)),
    }
