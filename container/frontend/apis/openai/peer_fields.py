"""Fields of other servers' requests that this server does not offer: each is refused by name.

The names are those of vLLM's and SGLang's request types (entrypoints/openai/.../protocol.py); the
values mean "off" there. Fields that this server's request models have are not checked here.
"""

from typing import Any, TypeVar

from container.errors import UnsupportedParameter
from container.frontend.web.request_body import Body, parse

B = TypeVar("B", bound=Body)

_NONE: tuple[Any, ...] = (None,)
_FALSE: tuple[Any, ...] = (None, False)
_TRUE: tuple[Any, ...] = (None, True)
_EMPTY: tuple[Any, ...] = (None, {}, [], "")

NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    # Sampling
    "use_beam_search": _FALSE,
    "early_stopping": _FALSE,
    "length_penalty": (None, 1),
    "best_of": (None, 1),
    "stop_regex": _EMPTY,
    "logprob_token_ids": _EMPTY,
    "logits_processors": _EMPTY,
    "custom_logit_processor": _EMPTY,
    "custom_params": _EMPTY,
    "repetition_detection": _EMPTY,
    "thinking_token_budget": _NONE,
    "watermark": _FALSE,
    "watermarking": _FALSE,
    "sampling_logprobs_mode": _NONE,
    # Prompts
    "chat_template": _EMPTY,
    "documents": _EMPTY,
    "echo": _FALSE,
    "input_ids": _EMPTY,
    "prompt_embeds": _EMPTY,
    "truncation_side": (None, "left"),
    "media_io_kwargs": _EMPTY,
    "mm_payload": (*_EMPTY, "tensors"),
    "mm_processor_kwargs": _EMPTY,
    "max_dynamic_patch": _NONE,
    "min_dynamic_patch": _NONE,
    "images_config": _EMPTY,
    "video_config": _EMPTY,
    "use_audio_in_video": _FALSE,
    "task": _NONE,
    "thinking": _NONE,
    # Structured output
    "guided_decoding_backend": _NONE,
    "guided_whitespace_pattern": _NONE,
    "structural_tag": _EMPTY,
    # The text of answers
    "skip_special_tokens": _TRUE,
    "separate_reasoning": _TRUE,
    "stream_reasoning": _TRUE,
    "stream_interval": (None, 1),
    # Fields that add to an answer
    "return_cached_tokens_details": _FALSE,
    "return_flat_raw_output_top_logprobs": _FALSE,
    "return_flat_raw_top_logprobs_b64": _FALSE,
    "return_hidden_states": _FALSE,
    "return_input_ids_in_sglext": _FALSE,
    "return_meta_info": _FALSE,
    "return_mm_kwargs": _FALSE,
    "return_output_ids_in_sglext": _FALSE,
    "return_prompt_text": _FALSE,
    "return_prompt_token_ids": _FALSE,
    "return_routed_experts": _FALSE,
    "return_sampling_mask": _FALSE,
    "return_spec_tokens_details": _FALSE,
    "return_token_offsets": _FALSE,
    "return_weight_versions": _FALSE,
    "routed_experts_prompt_start": (None, 0),
    "routed_experts_start_len": (None, 0),
    "enable_response_messages": _FALSE,
    "previous_input_messages": _EMPTY,
    # Scheduling and caches
    "priority": (None, 0),
    "cache_salt": _EMPTY,
    "extra_key": _EMPTY,
    "session_id": _EMPTY,
    "session_params": _EMPTY,
    "kv_transfer_params": _EMPTY,
    "ec_transfer_params": _EMPTY,
    "bootstrap_host": _NONE,
    "bootstrap_port": _NONE,
    "bootstrap_room": _NONE,
    "data_parallel_rank": _NONE,
    "disagg_prefill_dp_rank": _NONE,
    "routed_dp_rank": _NONE,
    "custom_labels": _EMPTY,
    "background_options": _EMPTY,
    "vllm_xargs": _EMPTY,
    # Fields that other routes or models here have
    "add_special_tokens": _NONE,
    "adapter_id": _EMPTY,
    "allowed_token_ids": _EMPTY,
    "bad_words": _EMPTY,
    "include_reasoning": _TRUE,
    "lora_path": _EMPTY,
    "min_tokens": (None, 0),
    "n": (None, 1),
    "prompt_logprobs": _NONE,
    "request_id": _EMPTY,
    "return_token_ids": _FALSE,
    "return_tokens_as_token_ids": _FALSE,
    "truncate_prompt_tokens": _NONE,
}
# Accepted without effect: names for the client's records, and fields without effect in vLLM, too
# while special tokens are left out of the text.
EFFECTLESS = frozenset({
    "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "spaces_between_special_tokens", "user",
})  # fmt: skip


def parse_request(model: type[B], body: dict[str, Any]) -> B:
    """Parse the body of an OpenAI route. Raises the error of a field that is not offered first."""
    refuse_peer_fields(body, model)
    return parse(model, body)


def refuse_peer_fields(body: dict[str, Any], model: type[Body]) -> None:
    """Raise UnsupportedParameter for a field of `body` that `model` does not have."""
    for name, value in body.items():
        if name in model.model_fields or value in NOT_OFFERED.get(name, (value,)):
            continue
        raise UnsupportedParameter(f"`{name}` is not supported by this server", field=name)
