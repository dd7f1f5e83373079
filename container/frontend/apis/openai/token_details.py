"""Tokens in answers: their ids, and log-probabilities as OpenAI and vLLM write them."""

from typing import Any

from container.frontend.generation import completion
from container.frontend.generation.completion import TextEvent, TokenText, token_text
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.running_request import RunningRequest


def shown(token: TokenText, *, as_id: bool) -> str:
    """A token's text, or `token_id:<id>` (vLLM's `return_tokens_as_token_ids`)."""
    return f"token_id:{token.token_id}" if as_id else token.text


def token_ids(events: list[TextEvent]) -> list[int]:
    """The ids of a completion."""
    return [event.token.token_id for event in events]


def logprob_entry(token: TokenText, *, as_id: bool) -> dict[str, Any]:
    """OpenAI's form of a token of a chat."""
    text = shown(token, as_id=as_id)
    return {"token": text, "logprob": token.logprob, "bytes": list(token.text.encode())}


def scored(event: TextEvent, *, as_id: bool) -> dict[str, Any]:
    """OpenAI's form of a token of a chat, with the likeliest ones in its place."""
    top = [logprob_entry(token, as_id=as_id) for token in event.top]
    return logprob_entry(event.token, as_id=as_id) | {"top_logprobs": top}


def prompt_tokens(running: RunningRequest) -> list[TokenText]:
    """The prompt's tokens; the first has no log-probability, as nothing comes before it."""
    tokenizer = running.completions[0].tokenizer
    return completion.prompt_tokens(running.prompt_ids, running.prompt.logprobs, tokenizer)


def prompt_tops(running: RunningRequest) -> list[list[TokenText]]:
    """The most likely tokens at each place of the prompt, its own token among them."""
    tokenizer = running.completions[0].tokenizer
    own = prompt_tokens(running)
    tops = running.prompt.tops or [[] for _ in own[1:]]
    texts = [[token_text(tokenizer, *pair) for pair in top] for top in in_pieces(tops)]
    return [[], *(with_own(top, token) for top, token in zip(texts, own[1:], strict=True))]


def with_own(top: list[TokenText], own: TokenText) -> list[TokenText]:
    """Return the most likely tokens, and the actual one if it is not among them."""
    return top if any(token.token_id == own.token_id for token in top) else [*top, own]


def prompt_logprobs(running: RunningRequest) -> list[dict[str, Any] | None]:
    """Return a map by token id for each position of the prompt, as vLLM; null for the first."""
    positions: list[dict[str, Any] | None] = [None]
    for top in prompt_tops(running)[1:]:
        positions.append(
            {
                str(token.token_id): {"logprob": token.logprob, "decoded_token": token.text}
                for token in top
            }
        )
    return positions
