"""Every field that OpenAI's own client knows is known here: supported, or refused by name."""

from openai.types import completion_create_params as completion
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as response

from container.frontend.apis.openai.chat_schema import ChatRequest
from container.frontend.apis.openai.completions_schema import CompletionRequest
from container.frontend.apis.openai.responses_schema import ResponseRequest


def test_chat() -> None:
    known = chat.CompletionCreateParamsBase.__annotations__.keys()
    assert known - ChatRequest.model_fields.keys() == set()


def test_completions() -> None:
    known = completion.CompletionCreateParamsBase.__annotations__.keys()
    assert known - CompletionRequest.model_fields.keys() == set()


def test_responses() -> None:
    known = response.ResponseCreateParamsBase.__annotations__.keys()
    assert known - ResponseRequest.model_fields.keys() == set()
