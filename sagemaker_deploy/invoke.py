"""Invokes an endpoint: builds request bodies and reads responses, in OpenAI's and TGI's formats."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sagemaker_deploy.aws import INVOKE_READ_TIMEOUT_S, STREAM_READ_TIMEOUT_S, Aws
from sagemaker_deploy.errors import AwsError, InvocationFailed

Json = dict[str, Any]
RUNTIME = "sagemaker-runtime"


@dataclass(frozen=True, slots=True)
class Address:
    """The target of an invocation."""

    endpoint: str
    component: str | None = None
    variant: str | None = None
    target_model: str | None = None
    session: str | None = None
    attributes: str | None = None

    def params(self) -> Json:
        """Return the address as parameters of InvokeEndpoint."""
        names = {
            "EndpointName": self.endpoint,
            "InferenceComponentName": self.component,
            "TargetVariant": self.variant,
            "TargetModel": self.target_model,
            "SessionId": self.session,
            "CustomAttributes": self.attributes,
        }
        return {name: value for name, value in names.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response."""

    body: bytes
    content_type: str
    attributes: str | None = None
    new_session: str | None = None

    @property
    def text(self) -> str:
        """The generated text, or the body if it contains none."""
        answer_text = text_of(self.body)
        return self.body.decode(errors="replace") if answer_text is None else answer_text


def messages_body(prompt: str, system: str | None, max_tokens: int | None, *, stream: bool) -> Json:
    """Build the body of a chat request."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    body: Json = {"messages": messages, "stream": stream}
    return body | ({"max_tokens": max_tokens} if max_tokens else {})


def generate_body(prompt: str, max_tokens: int | None, *, stream: bool) -> Json:
    """Build the body of a request to TGI's generate API."""
    parameters = {"max_new_tokens": max_tokens} if max_tokens else {}
    return {"inputs": prompt, "parameters": parameters, "stream": stream}


def call(aws: Aws, address: Address, body: bytes, content_type: str) -> Answer:
    """Call InvokeEndpoint. Raises InvocationFailed with the container's message."""
    params = address.params() | {"Body": body, "ContentType": content_type}
    try:
        result = aws.call(RUNTIME, "invoke_endpoint", INVOKE_READ_TIMEOUT_S, **params)
    except AwsError as error:
        raise failure(error, address) from error
    return Answer(
        result["Body"].read(),
        result.get("ContentType", ""),
        result.get("CustomAttributes"),
        result.get("NewSessionId"),
    )


def call_stream(aws: Aws, address: Address, body: bytes, content_type: str) -> Iterator[bytes]:
    """Call InvokeEndpointWithResponseStream and yield the container's bytes as they arrive."""
    params = address.params() | {"Body": body, "ContentType": content_type}
    operation = "invoke_endpoint_with_response_stream"
    try:
        result = aws.call(RUNTIME, operation, STREAM_READ_TIMEOUT_S, **params)
        yield from aws.stream_events(result["Body"])
    except AwsError as error:
        raise failure(error, address) from error


def failure(error: AwsError, address: Address) -> Exception:
    """Translate a ModelError to the container's message; return other errors unchanged."""
    if error.code != "ModelError":
        error.hint = error.hint or _address_hint(error.message, address)
        return error
    status, words = error.fields.get("OriginalStatusCode"), error.fields.get("OriginalMessage")
    component = f" --component {address.component}" if address.component else ""
    hint = f"see the container's log: sagemaker_deploy logs {address.endpoint}{component}"
    return InvocationFailed(f"{address.endpoint} answered {status}: {words}", hint=hint)


def _address_hint(message: str, address: Address) -> str:
    """Name the option that is missing from a call of an endpoint of another kind."""
    if not address.component and "Inference Component Name header is required" in message:
        return f"add --component; sagemaker_deploy status {address.endpoint} lists the components"
    if not address.target_model and "TargetModel" in message:
        return "add --target-model with the name of an archive below model.data, as in a.tar.gz"
    if "asynchronous endpoint" in message:
        return f"use: sagemaker_deploy async {address.endpoint}"
    return ""


def lines(parts: Iterable[bytes]) -> Iterator[str]:
    """Split a stream of arbitrary parts into lines; the last line needs no newline."""
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


def stream_text(parts: Iterable[bytes]) -> Iterator[str]:
    """Yield the text of a stream of server-sent events. Raises InvocationFailed on an error."""
    for line in lines(parts):
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise InvocationFailed(f"the stream ended with an error: {_words(event['error'])}")
        if text := _event_text(event):
            yield text


def text_of(body: bytes) -> str | None:
    """Return the text of a complete response in either format; None if it has none."""
    try:
        value = json.loads(body)
    except ValueError:
        return None
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, Mapping):
        return None
    if "generated_text" in value:
        return str(value["generated_text"])
    if choices := value.get("choices"):
        choice = choices[0]
        return str(choice.get("message", {}).get("content") or choice.get("text") or "")
    return None


def _event_text(event: Mapping[str, Any]) -> str:
    if "token" in event:
        token = event["token"]
        return "" if token.get("special") else str(token["text"])
    choices = event.get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or choices[0].get("text") or "")


def _words(error: object) -> str:
    return str(error.get("message", error)) if isinstance(error, Mapping) else str(error)
