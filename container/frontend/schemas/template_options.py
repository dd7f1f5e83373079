"""Variables that a request gives to the chat template; chat completions and responses alike."""

from typing import Any

from container.frontend.schemas.sampling import require

# What the renderer decides itself; the rest of `chat_template_kwargs` is up to the template.
RESERVED = frozenset({
    "messages", "conversation", "tools", "documents", "chat_template", "tokenize", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token",
    "unk_token", "pad_token", "sanitize_control_tokens",
})  # fmt: skip


def read_options(effort: str | None, given: dict[str, Any] | None) -> dict[str, Any]:
    """How much to reason, and `chat_template_kwargs`. Raises InvalidParameter."""
    for name in given or {}:
        require(name not in RESERVED, f"chat_template_kwargs.{name}", "cannot be set by a request")
    options: dict[str, Any] = {}
    if effort is not None:
        options["reasoning_effort"] = effort
        # Qwen's and DeepSeek's templates have a switch; other templates ignore it.
        options["enable_thinking"] = options["thinking"] = effort != "none"
    return options | (given or {})
