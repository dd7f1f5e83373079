"""The table of routes behind /openapi.json; a test compares it with the app's routes."""

import re
from dataclasses import dataclass
from typing import Any

from container import content
from container.frontend.apis.anthropic.schema import CountTokensRequest, MessagesRequest
from container.frontend.apis.docs import anthropic_schemas as anthropic
from container.frontend.apis.docs import embedding_schemas as texts
from container.frontend.apis.docs import openai_schemas as openai
from container.frontend.apis.docs import response_schemas as server
from container.frontend.apis.docs import tgi_schemas as tgi
from container.frontend.apis.embeddings.cohere_schema import CohereEmbedRequest
from container.frontend.apis.embeddings.openai_schema import CohereRerankRequest, OpenAIEmbedRequest
from container.frontend.apis.embeddings.pooling_schema import (
    ClassifyRequest,
    PoolingRequest,
    ScoreRequest,
)
from container.frontend.apis.openai.batch.chat_batch import BatchChatRequest
from container.frontend.apis.openai.chat_schema import ChatRequest
from container.frontend.apis.openai.completions_schema import CompletionRequest
from container.frontend.apis.openai.responses.schema import InputTokensRequest, ResponseRequest
from container.frontend.apis.sagemaker.adapters import AdapterRequest
from container.frontend.apis.tei.schemas import (
    EmbedAllRequest,
    EmbedRequest,
    PredictRequest,
    SimilarityRequest,
)
from container.frontend.apis.tei.schemas import RerankRequest as TeiRerankRequest
from container.frontend.apis.tgi.schemas import GenerateRequest

TGI, OPENAI, SAGEMAKER, SERVER = "TGI", "OpenAI", "SageMaker", "Server"
LLM_SERVING = "llm_serving"
ANTHROPIC, VLLM = "Anthropic", "vLLM"
TEI, RERANK = "Text Embeddings Inference", "Cohere and Jina"
Vectors = list[list[float]]
TokenVectors = list[Vectors]
Terms = list[list[texts.Term]]
Floats = list[float]
Ranks = list[texts.Rank]
Predictions = list[texts.Prediction] | list[list[texts.Prediction]]
GenerateArray = list[tgi.GenerateAnswer]
TextTokens = list[tgi.TextToken]
AnyError = tgi.TgiError | openai.OpenAIError | anthropic.AnthropicError
AnyBody = GenerateRequest | ChatRequest | CompletionRequest | MessagesRequest
AnyAnswer = (
    GenerateArray | openai.ChatCompletion | openai.TextCompletion | anthropic.AnthropicMessage
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One route: its body and its responses. `body` and `answer` are types that pydantic knows.

    `answer` None is an answer without JSON, of the media type `media`, or empty when that is "".
    `also` are media types beside JSON, of bodies and answers. `registers` is for those that may
    find that a name is taken.
    """

    method: str
    path: str
    tag: str
    summary: str
    body: Any = None
    answer: Any = None
    error: Any = tgi.TgiError
    media: str = ""
    streams: bool = False
    needs_key: bool = True
    also: tuple[str, ...] = ()
    registers: bool = False

    @property
    def path_fields(self) -> list[str]:
        """The names in the braces of its path."""
        return re.findall(r"{(\w+)}", self.path)


def _get(path: str, tag: str, summary: str, answer: Any = None, media: str = "") -> Operation:
    return Operation("get", path, tag, summary, answer=answer, media=media, needs_key=False)


OPERATIONS = (
    Operation(
        "post", "/invocations", SAGEMAKER, "Generate or chat; the body's shape decides",
        AnyBody, AnyAnswer, AnyError, streams=True,
        also=(content.JSON_LINES, content.TEXT, content.CSV),
    ),
    _get(
        "/execution-parameters", SAGEMAKER, "What a batch transform job should use",
        server.ExecutionParameters,
    ),
    Operation(
        "post", "/adapters", SAGEMAKER, "Register a LoRA adapter",
        AdapterRequest, media="text/plain", registers=True,
    ),
    Operation(
        "get", "/adapters", SAGEMAKER, "The registered adapters", answer=server.AdapterList
    ),
    Operation("get", "/adapters/{name}", SAGEMAKER, "One of them", answer=server.Adapter),
    Operation("delete", "/adapters/{name}", SAGEMAKER, "Unregister it", media="text/plain"),
    _get("/ping", SAGEMAKER, "Whether requests can be served now"),
    Operation("post", "/ping", SAGEMAKER, "Whether requests can be served now"),
    Operation(
        "post", "/", TGI, "Generate text, as an array of one; `stream` decides the form",
        GenerateRequest, GenerateArray, streams=True,
    ),
    Operation("post", "/generate", TGI, "Generate text", GenerateRequest, tgi.GenerateAnswer),
    Operation(
        "post", "/generate_stream", TGI, "Generate text, as a stream of StreamEvent",
        GenerateRequest, streams=True,
    ),
    Operation("post", "/tokenize", TGI, "The tokens of a text", GenerateRequest, TextTokens),
    Operation(
        "post", "/chat_tokenize", TGI, "A rendered chat and its tokens",
        ChatRequest, tgi.ChatTokens,
    ),
    Operation(
        "post", "/v1/chat/completions", OPENAI, "Continue a chat",
        ChatRequest, openai.ChatCompletion, openai.OpenAIError, streams=True,
    ),
    Operation(
        "post", "/openai/v1/chat/completions", OPENAI, "Continue a chat (SageMaker's path)",
        ChatRequest, openai.ChatCompletion, openai.OpenAIError, streams=True,
    ),
    Operation(
        "post", "/v1/chat/completions/batch", VLLM, "Continue several chats, a choice for each",
        BatchChatRequest, openai.ChatCompletion, openai.OpenAIError,
    ),
    Operation(
        "post", "/v1/completions", OPENAI, "Complete prompts",
        CompletionRequest, openai.TextCompletion, openai.OpenAIError, streams=True,
    ),
    Operation(
        "post", "/v1/responses", OPENAI, "Answer items with items",
        ResponseRequest, openai.ModelAnswer, openai.OpenAIError, streams=True,
    ),
    Operation(
        "post", "/v1/responses/input_tokens", OPENAI, "The tokens of items",
        InputTokensRequest, anthropic.TokenCount, openai.OpenAIError,
    ),
    Operation(
        "get", "/v1/responses/{response_id}", OPENAI, "A stored response",
        answer=openai.ModelAnswer, error=openai.OpenAIError,
    ),
    Operation(
        "delete", "/v1/responses/{response_id}", OPENAI, "Drop a stored response",
        answer=openai.Deleted, error=openai.OpenAIError,
    ),
    Operation(
        "post", "/v1/messages", ANTHROPIC, "Continue a conversation",
        MessagesRequest, anthropic.AnthropicMessage, anthropic.AnthropicError, streams=True,
    ),
    Operation(
        "post", "/v1/messages/count_tokens", ANTHROPIC, "The tokens of a conversation",
        CountTokensRequest, anthropic.TokenCount, anthropic.AnthropicError,
    ),
    Operation(
        "get", "/v1/models", OPENAI, "The served models",
        answer=openai.ModelList, error=openai.OpenAIError,
    ),
    Operation(
        "get", "/v1/models/{model_id}", OPENAI, "One of them",
        answer=openai.Model, error=openai.OpenAIError,
    ),
    Operation(
        "post", "/v1/embeddings", OPENAI, "Vectors of texts",
        OpenAIEmbedRequest, texts.EmbeddingList, openai.OpenAIError,
    ),
    Operation(
        "post", "/openai/v1/embeddings", OPENAI, "Vectors of texts (SageMaker's path)",
        OpenAIEmbedRequest, texts.EmbeddingList, openai.OpenAIError,
    ),
    Operation(
        "post", "/embeddings", OPENAI, "Vectors of texts (llm_serving's path)",
        OpenAIEmbedRequest, texts.EmbeddingList, openai.OpenAIError,
    ),
    Operation(
        "post", "/v2/embed", RERANK, "Vectors of texts, in several types",
        CohereEmbedRequest, texts.EmbeddingsByType, openai.OpenAIError,
    ),
    Operation(
        "post", "/v1/rerank", RERANK, "Documents by their relevance to a query",
        CohereRerankRequest, texts.RerankAnswer, openai.OpenAIError,
    ),
    Operation(
        "post", "/v2/rerank", RERANK, "Documents by their relevance to a query",
        CohereRerankRequest, texts.RerankAnswer, openai.OpenAIError,
    ),
    Operation(
        "post", "/pooling", VLLM, "Vectors or scores of texts",
        PoolingRequest, texts.Pooled, openai.OpenAIError,
    ),
    Operation(
        "post", "/score", VLLM, "Scores of pairs of texts",
        ScoreRequest, texts.Scores, openai.OpenAIError,
    ),
    Operation(
        "post", "/v1/score", VLLM, "Scores of pairs of texts",
        ScoreRequest, texts.Scores, openai.OpenAIError,
    ),
    Operation(
        "post", "/classify", VLLM, "Labels of texts",
        ClassifyRequest, texts.Classes, openai.OpenAIError,
    ),
    Operation("post", "/embed", TEI, "Vectors of texts", EmbedRequest, Vectors),
    Operation(
        "post", "/embed_all", TEI, "Vectors of the tokens of texts", EmbedAllRequest, TokenVectors
    ),
    Operation("post", "/embed_sparse", TEI, "Terms of texts", EmbedAllRequest, Terms),
    Operation("post", "/similarity", TEI, "Cosines with a sentence", SimilarityRequest, Floats),
    Operation("post", "/predict", TEI, "Scores of labels", PredictRequest, Predictions),
    Operation("post", "/rerank", TEI, "Texts by their relevance", TeiRerankRequest, Ranks),
    Operation(
        "get", "/chat", LLM_SERVING, "Whether the language model is loaded, and its settings",
        answer=server.ServingStatus,
    ),
    Operation(
        "post", "/chat/completions", LLM_SERVING, "Continue a chat; roles may be missing",
        ChatRequest, openai.ChatCompletion, openai.OpenAIError, streams=True,
    ),
    _get("/", SERVER, "Whether requests can be served now"),
    _get("/health", SERVER, "Whether requests can be served now"),
    _get("/info", SERVER, "The served model and the limits", server.ServerInfo),
    _get("/metrics", SERVER, "Prometheus metrics", media="text/plain"),
)  # fmt: skip
