"""Every field of vLLM's and SGLang's requests with texts has an effect or is refused by name.

vLLM 0.33.0 (entrypoints/pooling/*/protocol.py) and SGLang 0.5.23 (entrypoints/openai/protocol.py).
"""

import pytest
from openai.types import embedding_create_params as embedding

from container.errors import UnsupportedParameter
from container.frontend.apis.embeddings.openai_schema import CohereRerankRequest, OpenAIEmbedRequest
from container.frontend.apis.embeddings.peer_fields import NOT_OFFERED, refuse_peer_fields
from container.frontend.apis.embeddings.pooling_schema import (
    ClassifyRequest,
    PoolingRequest,
    ScoreRequest,
)
from container.frontend.web.request_body import Body


def _names(text: str) -> set[str]:
    return set(text.split())


BASIC = _names("""
    model user truncate_prompt_tokens padding truncation_side request_id priority
    mm_processor_kwargs cache_salt
""")
TEXTS = _names("input add_special_tokens")
CHATS = _names("""
    messages add_generation_prompt continue_final_message add_special_tokens chat_template
    chat_template_kwargs media_io_kwargs
""")
VECTORS = _names("encoding_format embed_dtype endianness dimensions use_activation")
LATE_CHUNKING = _names("late_chunking_params")
PAIRS = _names("""
    use_activation max_tokens_per_query max_tokens_per_doc instruction chat_template_kwargs
""")
SIDES = _names("text_1 text_2 queries documents items data_1 data_2")
SGLANG_EMBEDDING = _names("""
    input model encoding_format dimensions user rid priority lora_path embed_override_token_id
    embed_overrides
""")
SGLANG_RERANK = _names("query documents instruct top_n return_documents")
SGLANG_CLASSIFY = _names("model input user rid priority")
REQUESTS: list[tuple[type[Body], set[str]]] = [
    (OpenAIEmbedRequest, BASIC | TEXTS | CHATS | VECTORS | LATE_CHUNKING | SGLANG_EMBEDDING),
    (OpenAIEmbedRequest, {*embedding.EmbeddingCreateParams.__annotations__}),
    (PoolingRequest, BASIC | TEXTS | CHATS | VECTORS | {"task", "data"}),
    (ClassifyRequest, BASIC | TEXTS | CHATS | {"use_activation"} | SGLANG_CLASSIFY),
    (ScoreRequest, BASIC | PAIRS | SIDES),
    (CohereRerankRequest, BASIC | PAIRS | SGLANG_RERANK),
]
# Names for the client's records.
RECORDS = frozenset({"user", "request_id", "rid"})


@pytest.mark.parametrize(("model", "names"), REQUESTS)
def test_no_field_is_unknown(model: type[Body], names: set[str]) -> None:
    assert names - model.model_fields.keys() - NOT_OFFERED.keys() - RECORDS == set()


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_unsupported_values_are_refused_by_name(name: str) -> None:
    for neutral in NOT_OFFERED[name]:
        refuse_peer_fields({name: neutral})
    with pytest.raises(UnsupportedParameter, match=f"`{name}`") as refused:
        refuse_peer_fields({name: "something"})
    assert refused.value.field == name
