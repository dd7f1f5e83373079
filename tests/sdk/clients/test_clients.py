"""LangChain's SageMaker classes and LiteLLM, unmodified, against the local endpoint."""

import json
from typing import Any

import litellm
import pytest
from langchain_aws import SagemakerEndpoint
from langchain_aws.chat_models.sagemaker_endpoint import (
    ChatModelContentHandler,
    ChatSagemakerEndpoint,
)
from langchain_aws.llms.sagemaker_endpoint import LLMContentHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage

from tests.support.aws.local_sagemaker import REGION, Local

QUESTION = "What is deep learning?"
MESSAGES = [{"role": "user", "content": QUESTION}]


class Generate(LLMContentHandler):
    """TGI's generate shape, whole or streamed."""

    content_type = accepts = "application/json"

    def transform_input(self, prompt: str, model_kwargs: dict[str, Any]) -> bytes:
        stream = model_kwargs.pop("stream", False)
        return json.dumps({"inputs": prompt, "parameters": model_kwargs, "stream": stream}).encode()

    def transform_output(self, output: Any) -> str:
        if not isinstance(output, bytes | str):
            return str(json.loads(output.read())[0]["generated_text"])
        line = output.decode() if isinstance(output, bytes) else output
        return str(json.loads(line[5:])["token"]["text"]) if line.startswith("data:") else ""


class Chat(ChatModelContentHandler):
    """The Messages API, whole or streamed."""

    content_type = accepts = "application/json"

    def transform_input(self, prompt: Any, model_kwargs: dict[str, Any]) -> bytes:
        return json.dumps({"messages": prompt, "max_tokens": 8, **model_kwargs}).encode()

    def transform_output(self, output: Any) -> Any:
        if isinstance(output, bytes):
            line = output.decode()
            if not line.startswith("data:") or "[DONE]" in line:
                return AIMessageChunk(content="")
            choices = json.loads(line[5:])["choices"]
            return AIMessageChunk(content=choices[0]["delta"].get("content") or "")
        return AIMessage(content=json.loads(output.read())["choices"][0]["message"]["content"])


def test_langchains_endpoint_answers_and_streams(demo: str) -> None:
    llm = SagemakerEndpoint(
        endpoint_name=demo,
        region_name=REGION,
        content_handler=Generate(),
        model_kwargs={"max_new_tokens": 5, "return_full_text": False},
    )
    whole = llm.invoke("Hello")
    parts = list(llm.stream("Hello", stream=True))
    assert len(parts) > 1
    assert "".join(parts) == whole


def test_langchains_chat_endpoint_answers_and_streams(demo: str) -> None:
    chat = ChatSagemakerEndpoint(
        endpoint_name=demo,
        region_name=REGION,
        content_handler=Chat(),
        model_kwargs={"temperature": 0},
    )
    whole = chat.invoke([HumanMessage(QUESTION)]).content
    parts = [part.content for part in chat.stream([HumanMessage(QUESTION)], stream=True)]
    assert len(parts) > 1
    assert "".join(parts) == whole


def _complete(local: Local, endpoint: str, path: str, **settings: Any) -> Any:
    return litellm.completion(
        model=f"sagemaker_chat/{endpoint}",
        messages=MESSAGES,
        max_tokens=8,
        temperature=0,
        aws_region_name=REGION,
        # LiteLLM makes its own URL and does not read AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME.
        sagemaker_base_url=f"{local.url}/endpoints/{endpoint}/{path}",
        **settings,
    )


def test_litellm_answers_and_streams(demo: str, local: Local) -> None:
    whole = _complete(local, demo, "invocations").choices[0].message.content
    stream = _complete(local, demo, "invocations-response-stream", stream=True)
    parts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(parts) > 1
    assert "".join(parts) == whole


def test_litellm_reports_a_model_error(local: Local) -> None:
    with pytest.raises(litellm.exceptions.BadRequestError, match="nobody"):
        _complete(local, "nobody", "invocations")
