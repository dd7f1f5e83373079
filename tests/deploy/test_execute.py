"""The executor over a recorder: its calls, what it undoes after a failure, and what it names."""

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagemaker_deploy.errors import (
    AwsError,
    ConfigError,
    EndpointFailed,
    Interrupted,
    NotFound,
    QuotaExceeded,
)
from sagemaker_deploy.execute import Executor, pack
from sagemaker_deploy.plan.steps import Plan, PolicyArn, Secret, Step, Undo, Wait


class Recorder:
    """Answers calls from a script; an exception in it is raised."""

    def __init__(self, **responses: list[Any]) -> None:
        self.responses = responses
        self.calls: list[str] = []
        self.params: list[dict[str, Any]] = []

    def call(self, service: str, operation: str, **params: Any) -> dict[str, Any]:
        self.calls.append(operation)
        self.params.append(params)
        script = self.responses.get(operation, [{}])
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, BaseException):
            raise answer
        return dict(answer)


def _step(name: str, wait: Wait | None = None, **params: Any) -> Step:
    undo = Undo(f"delete_{name}", {"Name": name})
    return Step(f"create {name}", name, "sagemaker", f"create_{name}", params, undo, wait)


def _apply(recorder: Recorder, *steps: Step) -> None:
    executor = Executor(recorder, lambda *_: None, poll_s=0.0)  # type: ignore[arg-type]
    executor.apply(Plan("chat", steps))


WAIT = Wait("describe", {}, "Status", "InService", ("Failed",))


def test_steps_are_called_in_order_and_waited_for() -> None:
    recorder = Recorder(describe=[{"Status": "Creating"}, {"Status": "InService"}])
    _apply(recorder, _step("model"), _step("endpoint", WAIT))
    assert recorder.calls == ["create_model", "create_endpoint", "describe", "describe"]


def test_a_failure_undoes_steps_in_reverse() -> None:
    recorder = Recorder(create_endpoint=[QuotaExceeded("no ml.g5.xlarge left", hint="ask")])
    with pytest.raises(QuotaExceeded, match="everything that this run made was removed") as caught:
        _apply(recorder, _step("model"), _step("config"), _step("endpoint"))
    assert recorder.calls[3:] == ["delete_config", "delete_model"]
    assert caught.value.hint == "ask"


def test_a_refused_create_is_not_undone() -> None:
    recorder = Recorder(create_endpoint=[AwsError("already exists")])
    with pytest.raises(AwsError):
        _apply(recorder, _step("endpoint"))
    assert recorder.calls == ["create_endpoint"]


def test_a_failed_endpoint_is_removed_with_its_reason() -> None:
    recorder = Recorder(describe=[{"Status": "Failed", "FailureReason": "no ping"}])
    with pytest.raises(EndpointFailed, match="endpoint failed: no ping"):
        _apply(recorder, _step("endpoint", WAIT))
    assert recorder.calls[-1] == "delete_endpoint"


def test_an_update_that_was_rolled_back_is_a_failure() -> None:
    record = {"Status": "InService", "Config": "old", "FailureReason": "alarm errors"}
    wait = Wait("describe", {}, "Status", "InService", ("Failed",), expects={"Config": "new"})
    with pytest.raises(EndpointFailed, match="rolled back: alarm errors"):
        _apply(Recorder(describe=[record]), _step("endpoint", wait))


def test_resources_that_cannot_be_removed_are_named() -> None:
    recorder = Recorder(
        create_endpoint=[AwsError("refused")], delete_model=[AwsError("not allowed")]
    )
    with pytest.raises(AwsError, match=r"could not be removed: model \(not allowed\)"):
        _apply(recorder, _step("model"), _step("endpoint"))


def test_what_a_running_update_uses_stays() -> None:
    recorder = Recorder(describe=[{"Status": "Failed"}], delete_adapter=[AwsError("busy")])
    update = replace(_step("adapter", WAIT), uses_earlier=True)
    with pytest.raises(EndpointFailed, match="in use by now, so it stays: archive"):
        _apply(recorder, _step("archive"), update)
    assert "delete_archive" not in recorder.calls


def test_an_interruption_cleans_up_too() -> None:
    recorder = Recorder(describe=[KeyboardInterrupt()])
    with pytest.raises(Interrupted, match="interrupted"):
        _apply(recorder, _step("endpoint", WAIT))
    assert recorder.calls[-1] == "delete_endpoint"


def test_delete_of_a_deleted_resource_is_no_error() -> None:
    step = Step("d", "model", "sagemaker", "delete_model", {}, may_be_missing=True)
    _apply(Recorder(delete_model=[NotFound("gone")]), step)


def test_a_secret_is_read_when_the_step_is_carried_out() -> None:
    recorder = Recorder(get_secret_value=[{"SecretString": "hf_x"}])
    _apply(recorder, _step("model", Env={"HF_TOKEN": Secret("hub")}))
    assert recorder.params == [{"SecretId": "hub"}, {"Env": {"HF_TOKEN": "hf_x"}}]


def test_a_policys_arn_reaches_the_alarm_that_triggers_it() -> None:
    recorder = Recorder(create_policy=[{"PolicyARN": "arn:1"}])
    _apply(
        recorder,
        _step("policy", PolicyName="wake"),
        _step("alarm", AlarmActions=[PolicyArn("wake")]),
    )
    assert recorder.params[1] == {"AlarmActions": ["arn:1"]}


def test_a_folder_is_packed_with_the_code_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "code" / "old.py").write_text("")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "inference.py").write_text("")
    pack(tmp_path / "model", tmp_path / "src", tmp_path / "out.tar.gz")
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        assert archive.getnames() == ["config.json", "code", "code/inference.py"]


def test_code_that_is_a_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("")
    with pytest.raises(ConfigError, match="__init__"):
        pack(tmp_path, tmp_path, tmp_path / "out.tar.gz")
