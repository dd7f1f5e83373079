import msgspec
import pytest

from container import errors
from container.messages import common as messages_common
from container.messages import engine as messages
from container.messages.common import Abort, ErrorData, Hello, RequestFailed
from container.messages.engine import (
    AdapterInfo,
    AddAdapter,
    Done,
    EngineInfo,
    EngineLoad,
    FinishReason,
    LogprobMode,
    PromptStats,
    RemoveAdapter,
    SamplingParams,
    Status,
    StepEvents,
    Submit,
    TokenEvent,
    Watermark,
)

PARAMS = SamplingParams(5, temperature=0.5, top_k=3, top_p=0.9, seed=2**63 - 1,
                        logprobs=LogprobMode.RAW, logit_bias={3: -1.5}, stop_token_ids=[4],
                        watermark=Watermark(0.5, 2.0))  # fmt: skip
INFO = EngineInfo("id", "/path", None, "llama", "float32", "cpu", 200, 9, 10, 100, 20)
TO_ENGINE = [
    Hello(),
    Submit(1, [1, 2], PARAMS),
    Submit(1, [], SamplingParams(1), 3),
    Abort(3),
    Abort(3, 1),
    AddAdapter(4, "red", "/path", True, False),
    RemoveAdapter(5, "red"),
]
TO_FRONTEND = [
    Status("loading", "x"),
    Status("ready", "", INFO, EngineLoad(1, 2, 3, 4, 5, 6, 7, 8)),
    StepEvents(
        [
            TokenEvent(1, 0, 2, -0.5, FinishReason.STOP, [(5, -1.0)], PromptStats(0.1, 4, [-2.0])),
            TokenEvent(3, 1, 4),
        ]
    ),
    Status("ready", "", INFO, adapters=[AdapterInfo("red", "/path", True, False)]),
    Done(4),
    RequestFailed(1, ErrorData("overloaded", "full", None, 5)),
]


@pytest.mark.parametrize("message", TO_ENGINE, ids=lambda m: type(m).__name__)
def test_messages_to_the_engine_survive_the_wire(message: msgspec.Struct) -> None:
    assert messages.to_engine_decoder.decode(messages_common.encode(message)) == message


@pytest.mark.parametrize("message", TO_FRONTEND, ids=lambda m: type(m).__name__)
def test_messages_to_frontends_survive_the_wire(message: msgspec.Struct) -> None:
    assert messages.to_frontend_decoder.decode(messages_common.encode(message)) == message


def test_every_message_kind_is_tested() -> None:
    kinds = set(messages.ToEngine.__args__) | set(messages.ToFrontend.__args__)
    assert kinds == {type(message) for message in TO_ENGINE + TO_FRONTEND}


@pytest.mark.parametrize("leaf", [e for e in errors.leaves() if e is not errors.ConfigError])
def test_every_error_survives_the_wire(leaf: type[errors.ServingError]) -> None:
    error = leaf("message", field="f", retry_after_s=3)
    again = ErrorData.from_error(error).to_error()
    assert type(again) is leaf
    assert (again.message, again.field, again.retry_after_s) == ("message", "f", 3)


def test_kinds_are_unique() -> None:
    kinds = [leaf.kind for leaf in errors.leaves()]
    assert len(kinds) == len(set(kinds))
