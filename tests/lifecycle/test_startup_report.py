"""The report at start: model, code and machine, and settings that are probably mistakes."""

import json
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from container.lifecycle.serve import serve
from container.lifecycle.startup_report import machine_lines, model_lines, variable_lines
from container.machine import Gpu
from container.settings.engine import PlacementSettings
from container.settings.model import ModelSettings
from container.settings.process_env import model_root
from container.settings.settings import Settings
from tests.support.models.user_code import folder_with
from tests.support.servers import DEMO_MODEL


def _texts(settings: Settings, *, warnings_only: bool = False, **environ: str) -> list[str]:
    lines = [
        *model_lines(settings.model, settings.embedding, settings.handlers),
        *machine_lines(settings.placement.num_gpus, []),
        *variable_lines(environ),
    ]
    return [line.text for line in lines if line.is_warning or not warnings_only]


def test_the_report_has_model_files_and_machine(tmp_path: Path) -> None:
    texts = _texts(Settings(model=ModelSettings(model_id=str(DEMO_MODEL))))
    assert texts[0] == f"model: {DEMO_MODEL} (a folder; HF_MODEL_ID is set)"
    assert "1 with 0.0" in texts[1]
    assert "LlamaForCausalLM" in texts[1] or "ForCausalLM" in texts[1]
    assert any(text.startswith("machine: ") for text in texts)
    assert not _texts(Settings(model=ModelSettings(model_id=str(DEMO_MODEL))), warnings_only=True)


@pytest.mark.parametrize("architectures", [[5], "LlamaForCausalLM", 5, [None, []]])
def test_the_report_survives_what_it_cannot_read(tmp_path: Path, architectures: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "hidden").symlink_to("/proc/1/cwd/x")  # of which not even root is told more
    assert (
        "files: 1, of which 0" in _texts(Settings(model=ModelSettings(model_id=str(tmp_path))))[1]
    )


def test_an_archive_with_a_folder_in_it_is_a_model_too(tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "my-model")
    (tmp_path / "code").mkdir()
    assert model_root(tmp_path) == tmp_path / "my-model"
    assert any(
        "folder my-model" in text
        for text in _texts(Settings(model=ModelSettings(model_id=str(tmp_path))))
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    assert model_root(tmp_path) == tmp_path  # which one is meant cannot be known


def test_the_report_has_user_code_and_its_hooks(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", "def predict_fn(data, model): pass", with_model=True)
    assert any(
        "inference.py (predict_fn; the built-in engine as its model)" in text
        for text in _texts(Settings(model=ModelSettings(model_id=str(folder))))
    )
    folder = folder_with(tmp_path / "b", "def predict(): pass", with_model=True)
    assert any(
        "no functions that are known" in text
        for text in _texts(Settings(model=ModelSettings(model_id=str(folder))), warnings_only=True)
    )


def test_code_in_the_wrong_folder_is_a_warning(tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "m")
    (tmp_path / "m" / "inference.py").touch()
    settings = Settings(model=ModelSettings(model_id=str(tmp_path / "m")))
    assert any(
        "belongs in the folder code/" in text for text in _texts(settings, warnings_only=True)
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HF_MODELID", "HF_MODEL_ID"),
        ("MAX_INPUT_TOKEN", "MAX_INPUT_TOKENS"),
        ("SAGEMAKER_PROGRM", "SAGEMAKER_PROGRAM"),
        ("SM_NUM_GPU", "SM_NUM_GPUS"),
        ("MESSAGES_API_ENABLE", "MESSAGES_API_ENABLED"),
    ],
)
def test_a_misspelt_variable_is_reported_with_the_nearest(name: str, meant: str) -> None:
    texts = _texts(Settings(model=ModelSettings(model_id="a/b")), warnings_only=True, **{name: "x"})
    assert texts == [f"{name} is not known; did you mean {meant}?"]


def test_dimensions_without_a_namespace_are_reported() -> None:
    dimensions = {"EMF_DIMENSIONS": "EndpointName=chat"}
    (text,) = _texts(Settings(), warnings_only=True, **dimensions)
    assert "EMF_NAMESPACE" in text
    assert not _texts(Settings(), warnings_only=True, **dimensions, EMF_NAMESPACE="LLM")


def test_ordinary_variables_are_not_taken_for_misspelt_ones() -> None:
    ordinary = {"PATH", "HOME", "LANG", "PWD", "SHLVL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
                "PYTHONUNBUFFERED", "AWS_REGION", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "TERM",
                "NVIDIA_VISIBLE_DEVICES", "HF_HUB_ENABLE_HF_TRANSFER", "OMP_NUM_THREADS", "USER",
                "ENDPOINT_SERVER_TIMEOUT", "MODEL_CACHE_ROOT", "SAGEMAKER_REGION",
                "SAGEMAKER_MODEL_SERVER_TIMEOUT", "TENSOR_PARALLEL_DEGREE"}  # fmt: skip
    assert (
        _texts(
            Settings(model=ModelSettings(model_id="a/b")),
            warnings_only=True,
            **dict.fromkeys(ordinary, "x"),
        )
        == []
    )


def test_variables_of_other_images_are_named_in_one_line() -> None:
    environ = {"OPTION_MAX_MODEL_LEN": "4096", "OPTION_DTYPE": "fp16", "SM_VLLM_MODEL": "a/b"}
    environ["SM_VLLM_SEED"] = "1"
    [text] = _texts(Settings(model=ModelSettings(model_id="a/b")), warnings_only=True, **environ)
    for name in (
        "OPTION_DTYPE (here DTYPE)",
        "OPTION_MAX_MODEL_LEN (here MAX_TOTAL_TOKENS)",
        "SM_VLLM_MODEL (here HF_MODEL_ID)",
        "SM_VLLM_SEED;",
    ):
        assert name in text


def test_an_overridden_alias_is_named() -> None:
    environ = {"LOG_LEVEL": "debug", "SAGEMAKER_CONTAINER_LOG_LEVEL": "20"}
    texts = _texts(Settings(model=ModelSettings(model_id="a/b")), **environ)
    assert [text for text in texts if "wins: SAGEMAKER_CONTAINER_LOG_LEVEL" in text]


@pytest.mark.parametrize("number", [1, 4])
def test_gpus_that_the_machine_lacks_are_a_warning(number: int) -> None:
    settings = Settings(
        model=ModelSettings(model_id="a/b"), placement=PlacementSettings(num_gpus=number)
    )
    [text] = _texts(settings, warnings_only=True)
    assert text.startswith(f"SM_NUM_GPUS={number}, but this machine has no GPU")


def test_gpus_are_named_and_torch_for_cpus_is_a_warning() -> None:
    gpu = Gpu("NVIDIA L4", 23034 * 2**20, "550.90.07")
    machine, named, torch = machine_lines(1, [gpu])
    assert machine.text.startswith("machine: ")
    assert named.text == "GPU: NVIDIA L4, 22 GiB, driver 550.90.07"
    assert torch.is_warning == ("+cpu" in torch.text)


def test_empty_variables_are_named_in_one_line() -> None:
    texts = _texts(
        Settings(model=ModelSettings(model_id="a/b")),
        SAGEMAKER_PROGRAM="",
        SAGEMAKER_SUBMIT_DIRECTORY=" ",
    )
    assert (
        "empty variables, which count as unset: SAGEMAKER_PROGRAM, SAGEMAKER_SUBMIT_DIRECTORY"
        in texts
    )


@pytest.mark.parametrize(
    ("name", "text", "owner"),
    [
        ("model.py", "from djl_python import Input\ndef handle(inputs): ...", "LMI"),
        ("model.py", "async def custom_sagemaker_invocation_handler(r): ...", "vLLM and SGLang"),
        ("code/model.py", "async def custom_sagemaker_ping_handler(): ...", "vLLM and SGLang"),
        ("handler.py", "class EndpointHandler:\n    ...", "Hugging Face Inference Endpoints"),
        ("code/handler_service.py", "class HandlerService: ...", "Multi Model Server"),
        ("serving.properties", "engine=Python\noption.tp=1", "LMI"),
    ],
)
def test_handler_files_of_other_images_are_named(
    tmp_path: Path, name: str, text: str, owner: str
) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "m")
    path = tmp_path / "m" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    settings = Settings(model=ModelSettings(model_id=str(tmp_path / "m")))
    warnings = _texts(settings, warnings_only=True)
    assert [f"{path} is not used" in one and owner in one for one in warnings] == [True]


def test_a_model_py_of_a_models_own_is_no_warning(tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "m")
    (tmp_path / "m" / "model.py").write_text("import torch\nclass Net(torch.nn.Module): ...")
    settings = Settings(model=ModelSettings(model_id=str(tmp_path / "m")))
    assert not _texts(settings, warnings_only=True)


def test_variables_of_custom_vllm_handlers_are_named() -> None:
    settings = Settings(model=ModelSettings(model_id="a/b"))
    [warning] = _texts(settings, warnings_only=True, CUSTOM_FASTAPI_PING_HANDLER="m.py:ping")
    assert "CUSTOM_FASTAPI_PING_HANDLER" in warning


def test_an_unwritable_temporary_folder_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = serve(Settings(model=ModelSettings(model_id=str(DEMO_MODEL))))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert code == 2
    assert "mount a writable /tmp, or set TMPDIR" in caplog.text
