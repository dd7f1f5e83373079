"""The image serves: started as SageMaker starts it, with nothing that SageMaker does not give."""

import json
from pathlib import Path

import pytest

from tests.support.image.containers import IMAGE, Container, container, engine, run_once
from tests.support.servers import DEMO_MODEL

QUESTION = "What is deep learning?"
MESSAGES = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}


def test_ping_is_200_and_invocations_answers_the_generate_shape(demo: Container) -> None:
    assert demo.ask("/ping").status == 200
    body = {"inputs": QUESTION, "parameters": {"max_new_tokens": 8, "details": True}}
    answer = demo.ask("/invocations", body)
    assert answer.status == 200
    (only,) = answer.json()
    assert only["details"]["generated_tokens"] == 8
    assert only["generated_text"]


def test_invocations_answers_messages(demo: Container) -> None:
    answer = demo.ask("/invocations", MESSAGES).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    "body",
    [MESSAGES | {"stream": True}, {"inputs": QUESTION, "stream": True}],
    ids=["messages", "generate"],
)
def test_streams_are_events_that_end_with_a_newline(demo: Container, body: dict) -> None:
    answer = demo.ask("/invocations", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n")
    assert len(answer.events()) > 5


def test_a_mistake_in_the_body_is_a_422_that_names_the_field(demo: Container) -> None:
    answer = demo.ask("/invocations", {"inputs": "x", "parameters": {"temperature": -1}})
    assert answer.status == 422
    assert "temperature" in answer.text


def test_the_health_check_of_the_image_passes(demo: Container) -> None:
    described = json.loads(engine("image", "inspect", IMAGE))[0]
    described |= described["Config"]  # podman and docker keep it in different places
    kind, *command = described["Healthcheck"]["Test"]
    assert kind == "CMD"
    engine("exec", demo.name, *command)


def test_every_line_of_the_log_is_a_json_object(demo: Container) -> None:
    lines = [json.loads(line) for line in demo.logs()]
    assert any("ready after" in line["message"] for line in lines)
    assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in lines)


def test_switches_come_from_the_environment() -> None:
    with container(
        model=DEMO_MODEL,
        port=9001,
        SAGEMAKER_BIND_TO_PORT="9001",
        MESSAGES_API_ENABLED="true",
        SAGEMAKER_PROGRAM="",
        SAGEMAKER_SUBMIT_DIRECTORY="",
        SAGEMAKER_CONTAINER_LOG_LEVEL="30",
    ) as running:
        assert running.ask("/invocations", MESSAGES).status == 200
        assert running.ask("/invocations", {"inputs": QUESTION}).status == 400
        assert not [line for line in running.logs() if '"level": "info"' in line]


def test_any_user_can_serve_a_model_from_any_folder() -> None:
    folder = "/data/model"
    with container(
        "--user=1234:4321", f"--volume={DEMO_MODEL}:{folder}:ro", model=None, HF_MODEL_ID=folder
    ) as running:
        assert running.ask("/invocations", MESSAGES).status == 200
        assert running.stop() == 0


def test_sigterm_finishes_a_stream_and_exits_with_0(endless_model: Path) -> None:
    parameters = {"max_new_tokens": 1500, "details": True}
    body = {"inputs": "Tell me", "parameters": parameters, "stream": True}
    with container(model=endless_model, GRACEFUL_TERMINATION_TIMEOUT="20") as running:
        stream = running.begin("/invocations", body)
        assert json.loads(stream.stdout.readline())[0] == 200
        assert stream.stdout.readline().startswith("data:")
        running.terminate()
        rest, _ = stream.communicate(timeout=60)
        last = json.loads([line for line in rest.splitlines() if line][-1].removeprefix("data:"))
        assert last["details"]["generated_tokens"] == 1500
        assert running.exit_code() == 0


def test_nothing_is_written_outside_the_temporary_folder() -> None:
    with container("--read-only=false") as running:
        assert running.ask("/invocations", MESSAGES).status == 200
        written = _changes(running)
    assert not written


def _changes(running: Container) -> list[str]:
    paths = [line.split(maxsplit=1)[1] for line in engine("diff", running.name).splitlines()]
    mounted = ("/opt/ml", "/etc", "/run", "/dev", "/proc", "/sys", "/tmp", "/var/tmp")
    return [path for path in paths if path != "/opt" and not path.startswith(mounted)]


def test_train_is_refused_in_a_sentence() -> None:
    code, output = run_once("train")
    assert code == 1
    assert "this image serves models; it does not train" in output
    assert "Traceback" not in output


def test_an_unreachable_hub_ends_the_start_with_the_reason() -> None:
    code, output = run_once("serve", options=("--env=HF_MODEL_ID=nobody/nothing",))
    assert code == 3
    assert "Hub cannot be reached" in output
    assert "Traceback" not in output


def test_a_file_of_the_model_shadows_no_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    code, output = run_once(
        "-c", "import json, code; print(code.interact)", entrypoint="python",
        options=(f"--volume={tmp_path}:/opt/ml/model:ro", "--workdir=/opt/ml/model"),
    )  # fmt: skip
    assert code == 0, output
