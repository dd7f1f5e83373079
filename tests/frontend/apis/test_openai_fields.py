"""Every field that a client of OpenAI, vLLM or SGLang may send has an effect or is refused by name.

OpenAI's names are read from its package, and those that came since (3.57.0) are listed here, as
vLLM's (0.33.0) and SGLang's (0.5.23) are.
"""

import re
from pathlib import Path

import pytest
from openai.types import completion_create_params as completion
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as response

from container.errors import UnsupportedParameter
from container.frontend.apis.anthropic.schema import MessagesRequest
from container.frontend.apis.openai.chat_schema import ChatRequest
from container.frontend.apis.openai.completions_schema import CompletionRequest
from container.frontend.apis.openai.peer_fields import EFFECTLESS, NOT_OFFERED, refuse_peer_fields
from container.frontend.apis.openai.responses.schema import ResponseRequest
from container.frontend.apis.openai.structured_fields import StructuredFields
from container.frontend.web.request_body import Body

SOURCES = Path(__file__).parents[3] / "container" / "frontend" / "apis" / "openai"
CODE = "\n".join(path.read_text() for path in SOURCES.rglob("*.py"))


def _names(text: str) -> set[str]:
    return set(text.split())


VLLM_CHAT = _names("""
    messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens
    max_completion_tokens n presence_penalty response_format seed stop stream stream_options
    temperature top_p tools tool_choice reasoning_effort thinking_token_budget include_reasoning
    parallel_tool_calls user use_beam_search top_k min_p repetition_penalty watermarking
    length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
    skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side
    prompt_logprobs logprob_token_ids allowed_token_ids bad_words echo add_generation_prompt
    continue_final_message add_special_tokens documents chat_template chat_template_kwargs
    media_io_kwargs mm_processor_kwargs structured_outputs priority request_id session_id
    return_tokens_as_token_ids return_token_ids return_weight_versions
    routed_experts_prompt_start return_token_offsets return_prompt_text mm_payload
    return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs
    repetition_detection stream_interval
""")
SGLANG_CHAT = _names("""
    bootstrap_host bootstrap_port bootstrap_room routed_dp_rank disagg_prefill_dp_rank messages
    model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
    presence_penalty response_format seed stop stream stream_options temperature top_p user
    tools tool_choice parallel_tool_calls return_hidden_states return_routed_experts
    routed_experts_start_len return_cached_tokens_details return_spec_tokens_details
    return_prompt_token_ids return_token_ids return_meta_info return_input_ids_in_sglext
    return_output_ids_in_sglext return_sampling_mask sampling_logprobs_mode
    return_flat_raw_output_top_logprobs return_flat_raw_top_logprobs_b64 reasoning_effort
    thinking task top_k min_p min_tokens regex ebnf repetition_penalty stop_token_ids stop_regex
    no_stop_trim ignore_eos continue_final_message skip_special_tokens lora_path session_id
    session_params separate_reasoning stream_reasoning chat_template_kwargs max_dynamic_patch
    min_dynamic_patch use_audio_in_video images_config video_config mm_processor_kwargs
    custom_logit_processor custom_params watermark input_ids rid extra_key cache_salt priority
    data_parallel_rank
""")
VLLM_COMPLETION = _names("""
    model prompt echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed
    stop stream stream_options suffix temperature top_p user use_beam_search top_k min_p
    repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output
    ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens
    truncate_prompt_tokens truncation_side allowed_token_ids prompt_logprobs logprob_token_ids
    bad_words prompt_embeds add_special_tokens response_format structured_outputs priority
    request_id session_id return_tokens_as_token_ids return_token_ids return_weight_versions
    routed_experts_prompt_start return_token_offsets mm_payload return_mm_kwargs cache_salt
    kv_transfer_params ec_transfer_params vllm_xargs repetition_detection thinking_token_budget
    stream_interval
""")
SGLANG_COMPLETION = _names("""
    bootstrap_host bootstrap_port bootstrap_room routed_dp_rank disagg_prefill_dp_rank model
    prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed
    stop stream stream_options suffix temperature top_p user return_hidden_states
    return_routed_experts routed_experts_start_len return_cached_tokens_details
    return_spec_tokens_details return_token_ids top_k min_p min_tokens json_schema regex ebnf
    repetition_penalty stop_token_ids stop_regex no_stop_trim ignore_eos skip_special_tokens
    lora_path session_id session_params response_format custom_params custom_logit_processor
    watermark images_config mm_processor_kwargs data_parallel_rank rid extra_key cache_salt
    priority custom_labels
""")
VLLM_RESPONSE = _names("""
    background include input instructions max_output_tokens max_tool_calls metadata model
    logit_bias parallel_tool_calls previous_response_id prompt reasoning include_reasoning
    service_tier store stream temperature text tool_choice tools top_logprobs top_p top_k min_p
    truncation user skip_special_tokens spaces_between_special_tokens include_stop_str_in_output
    presence_penalty frequency_penalty prompt_cache_key prompt_cache_options
    prompt_cache_retention safety_identifier watermarking request_id session_id media_io_kwargs
    mm_processor_kwargs priority mm_payload return_mm_kwargs cache_salt enable_response_messages
    previous_input_messages structured_outputs repetition_penalty seed stop stop_token_ids
    ignore_eos vllm_xargs kv_transfer_params ec_transfer_params chat_template_kwargs
""")
SGLANG_RESPONSE = _names("""
    bootstrap_host bootstrap_port bootstrap_room routed_dp_rank disagg_prefill_dp_rank
    background include input instructions max_output_tokens max_tool_calls metadata model
    parallel_tool_calls previous_response_id reasoning service_tier store stream temperature
    text tool_choice tools top_logprobs top_p truncation user chat_template_kwargs request_id
    session_id priority extra_key cache_salt data_parallel_rank frequency_penalty
    presence_penalty stop top_k min_p repetition_penalty
""")
VLLM_MESSAGES = _names("""
    model messages max_tokens metadata output_config thinking stop_sequences stream system
    temperature tool_choice tools top_k top_p mm_payload return_mm_kwargs cache_salt watermarking
    kv_transfer_params ec_transfer_params vllm_xargs chat_template_kwargs
""")
SGLANG_MESSAGES = _names("""
    bootstrap_host bootstrap_port bootstrap_room routed_dp_rank disagg_prefill_dp_rank model
    messages max_tokens metadata stop_sequences stream system temperature thinking tool_choice
    tools top_k top_p output_config
""")
LEGACY = _names("""
    guided_json guided_regex guided_choice guided_grammar guided_decoding_backend
    guided_whitespace_pattern best_of early_stopping logits_processors
""")
REQUESTS: list[tuple[type[Body], set[str]]] = [
    (ChatRequest, {*chat.CompletionCreateParamsBase.__annotations__}),
    (ChatRequest, {*VLLM_CHAT, *SGLANG_CHAT, *LEGACY}),
    (CompletionRequest, {*completion.CompletionCreateParamsBase.__annotations__}),
    (CompletionRequest, {*VLLM_COMPLETION, *SGLANG_COMPLETION, *LEGACY}),
    (ResponseRequest, {*response.ResponseCreateParamsBase.__annotations__, "background_options"}),
    (ResponseRequest, {*VLLM_RESPONSE, *SGLANG_RESPONSE}),
    (MessagesRequest, {*VLLM_MESSAGES, *SGLANG_MESSAGES}),
]


@pytest.mark.parametrize(("model", "names"), REQUESTS)
def test_no_field_is_unknown(model: type[Body], names: set[str]) -> None:
    assert names - model.model_fields.keys() - NOT_OFFERED.keys() - EFFECTLESS == set()


@pytest.mark.parametrize(
    "model", [ChatRequest, CompletionRequest, ResponseRequest, MessagesRequest]
)
def test_unsupported_values_are_refused_by_name(model: type[Body]) -> None:
    for name in NOT_OFFERED.keys() - model.model_fields.keys():
        for neutral in NOT_OFFERED[name]:
            refuse_peer_fields({name: neutral}, model)
        with pytest.raises(UnsupportedParameter, match=f"`{name}`") as refused:
            refuse_peer_fields({name: "something"}, model)
        assert refused.value.field == name


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest, ResponseRequest])
def test_every_field_of_the_schemas_is_used(model: type[Body]) -> None:
    """A field that no code reads, and no table refuses, would be ignored silently."""

    def is_read(name: str) -> bool:
        named = rf'"{name}"(: [(_]|,$)'
        return bool(re.search(rf"\.{name}\b|{named}", CODE, re.MULTILINE))

    unread = {name for name in model.model_fields if not is_read(name)}
    assert unread - EFFECTLESS - StructuredFields.model_fields.keys() == set()
