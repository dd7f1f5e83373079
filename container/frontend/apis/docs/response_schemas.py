"""Schemas of responses for /openapi.json: the base, and the routes of the server itself.

They only describe; no response is parsed or built with them.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of all responses, which may have more fields than their schema names."""

    model_config = ConfigDict(extra="allow")


class Adapter(Answer):
    """A registered LoRA adapter."""

    name: str
    src: str
    loaded: bool
    pin: bool


class AdapterList(Answer):
    """The registered adapters."""

    adapters: list[Adapter]


class ExecutionParameters(Answer):
    """SageMaker's parameters for a batch transform job."""

    MaxConcurrentTransforms: int
    BatchStrategy: str
    MaxPayloadInMB: int


class ServerInfo(Answer):
    """The served model and the limits."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str


class ServingStatus(Answer):
    """The status of `llm_serving`; `model_name` and more fields once the model is loaded."""

    status: Literal["running", "not started"]
    message: str | None = None
    model_name: str | None = None
