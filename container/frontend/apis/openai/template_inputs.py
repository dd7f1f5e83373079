"""The inputs of chat templates: the parts of a message, and variables of the request."""

from typing import Any

from container.frontend.apis.openai.sampling_schema import require

IMAGE_PART = {"type": "image"}  # its position among the images identifies it
# What the renderer decides itself; the rest of `chat_template_kwargs` is up to the template.
RESERVED = frozenset({
    "messages", "conversation", "tools", "documents", "chat_template", "tokenize", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token",
    "unk_token", "pad_token", "sanitize_control_tokens",
})  # fmt: skip


def text_part(text: str) -> dict[str, str]:
    """A piece of text."""
    return {"type": "text", "text": text}


def merge_text_parts(parts: list[dict[str, str]]) -> str | list[dict[str, str]]:
    """Parts that are all text as one string, which every template reads."""
    if IMAGE_PART in parts:
        return parts
    return "".join(part["text"] for part in parts)


def read_options(effort: str | None, requested: dict[str, Any] | None) -> dict[str, Any]:
    """How much to reason, and `chat_template_kwargs`. Raises InvalidParameter."""
    for name in requested or {}:
        require(name not in RESERVED, f"chat_template_kwargs.{name}", "cannot be set by a request")
    options: dict[str, Any] = {}
    if effort is not None:
        options["reasoning_effort"] = effort
        # Qwen's and DeepSeek's templates have a switch; other templates ignore it. A low effort
        # leaves it unset: it does not ask for reasoning where there is none.
        if effort not in ("minimal", "low"):
            options["enable_thinking"] = options["thinking"] = effort != "none"
    return options | (requested or {})
