"""Fields that vLLM and SGLang add to the bodies of OpenAI's and Cohere's embedding routes."""

from dataclasses import replace
from typing import Any

from pydantic import Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.text_inputs import Side
from container.frontend.embedding.service import TextOptions
from container.frontend.web.request_body import Body
from container.messages.embedder import Truncation

# What vLLM and SGLang know and this server does not offer: the values that mean "off".
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (None, False),
    "add_special_tokens": (None, True),
    "cache_salt": (None, ""),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "continue_final_message": (None, False),
    "data": (None,),
    "embed_dtype": (None, "float32"),
    "embed_override_token_id": (None,),
    "embed_overrides": (None, []),
    "endianness": (None, "native", "little"),
    "instruct": (None, ""),
    "instruction": (None, ""),
    "late_chunking_params": (None,),
    "lora_path": (None, "", []),
    "media_io_kwargs": (None, {}),
    "messages": (None,),
    "mm_processor_kwargs": (None, {}),
    "padding": (None, False, "do_not_pad"),
    "priority": (None, 0),
}


class TruncationFields(Body):
    """vLLM's fields for texts that are too long."""

    truncate_prompt_tokens: int | None = None
    truncation_side: Side | None = None

    def cut(self, options: TextOptions) -> TextOptions:
        """Add these fields to the options; -1 is the model's length. Raises InvalidParameter."""
        cut = self.truncate_prompt_tokens
        if cut is not None and cut != -1 and cut < 1:
            raise InvalidParameter(
                f"`truncate_prompt_tokens` must be -1 or >= 1. Given: {cut}",
                field="truncate_prompt_tokens",
            )
        if cut is not None:
            options = replace(options, truncate=True, max_tokens=max(cut, 0))
        if self.truncation_side is not None:
            options = replace(options, side=Truncation(self.truncation_side))
        return options


class PairTruncationFields(TruncationFields):
    """vLLM's limits of queries and documents, in tokens; 0 is none."""

    max_tokens_per_query: int | None = Field(default=None, ge=0)
    max_tokens_per_doc: int | None = Field(default=None, ge=0)

    def cut_sides(self, options: TextOptions) -> TextOptions:
        """Add these fields to the options."""
        return replace(
            self.cut(options),
            max_query_tokens=self.max_tokens_per_query or 0,
            max_document_tokens=self.max_tokens_per_doc or 0,
        )


def refuse_peer_fields(body: dict[str, Any]) -> None:
    """Raise UnsupportedParameter for a field that is not offered."""
    for name, neutral in NOT_OFFERED.items():
        if body.get(name) not in neutral:
            raise UnsupportedParameter(f"`{name}` is not supported by this server", field=name)
