"""OpenAI's completions shape: prompts in, text out; TGI has the same route with less."""

from typing import Any

from container.frontend.apis.openai.sampling_schema import (
    GenerationFields,
    check_generation,
    refuse,
    require,
    within,
)
from container.frontend.generation.limits import RequestLimits
from container.frontend.web.request_body import Items

MAX_LOGPROBS = 5  # OpenAI's own limit
NOT_OFFERED: dict[str, tuple[Any, ...]] = {"suffix": (None,)}


class CompletionRequest(GenerationFields):
    """One prompt or several, as text or as token ids."""

    prompt: str | Items[str] | Items[int] | Items[Items[int]]
    echo: bool | None = False
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    user: str | None = None

    @property
    def top_prompt_logprobs(self) -> int | None:
        """How many of the most likely tokens each place of the prompt has; None: no scores."""
        if self.echo and self.logprobs is not None:
            return max(self.logprobs, self.prompt_logprobs or 0)
        return self.prompt_logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [item for item in self.prompt if isinstance(item, int)]
        return [ids] if ids else [item for item in self.prompt if not isinstance(item, int)]


def check(request: CompletionRequest, limits: RequestLimits, vocabulary: int) -> None:
    """Check ranges. Raises InvalidParameter, or UnsupportedParameter for fields not offered."""
    r = request
    refuse(r, NOT_OFFERED)
    check_generation(r, limits, vocabulary)
    count = len(r.prompts)
    require(count > 0, "prompt", "must not be an empty list")
    most = limits.max_prompts
    require(
        count <= most, "prompt", f"has {count} prompts; the limit is {most} (MAX_CLIENT_BATCH_SIZE)"
    )
    for prompt in r.prompts:
        ids = prompt if isinstance(prompt, list) else []
        within(min(ids, default=None), "prompt", 0, None)
        within(max(ids, default=None), "prompt", None, vocabulary - 1)
    within(r.logprobs, "logprobs", 0, MAX_LOGPROBS)
    is_all = r.best_of is None or r.best_of == (r.n or 1)
    require(is_all, "best_of", "must equal `n`: there is no choice among more")
