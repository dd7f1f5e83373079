import json
import math
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from container.errors import ConfigError
from container.settings.order import ORDER
from container.settings.page import markdown_page
from container.settings.requests import OTHER_TOOL_CALL_PARSERS, TOOL_CALL_PARSERS
from container.settings.settings import REFUSED, Settings, describe, setting_names
from container.settings.tgi import DEFAULTS, WITHOUT_EFFECT, without_effect
from container.text.message_style import style_of
from container.text.tool_formats import FORMATS


def _problems(**environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Settings.from_environ(environ)
    return caught.value.errors


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_environ({}) == Settings()


def test_every_default_survives_its_own_parser() -> None:
    environ = {row.name: row.value for row in describe(Settings()) if row.value != "unset"}
    assert Settings.from_environ(environ) == Settings()


def test_empty_variables_count_as_unset() -> None:
    assert Settings.from_environ({"HF_MODEL_ID": "", "PORT": " "}) == Settings()


def test_tgis_and_sagemakers_names_are_understood() -> None:
    settings = Settings.from_environ(
        {
            "MODEL_ID": "a/b",
            "MAX_INPUT_LENGTH": "10",
            "HUGGING_FACE_HUB_TOKEN": "t",
            "SM_NUM_GPUS": "all",
            "SAGEMAKER_CONTAINER_LOG_LEVEL": "10",
            "DTYPE": "bf16",
        }
    )
    assert settings.model.model_id == "a/b"
    assert settings.engine.max_input_tokens == 10
    assert settings.model.hf_token == "t"
    assert settings.placement.num_gpus is None
    assert settings.observability.log_level == "debug"
    assert settings.model.dtype == "bfloat16"


def test_all_errors_are_reported_at_once() -> None:
    problems = _problems(PORT="x", DTYPE="int3", MESSAGES_API_ENABLED="maybe", MAX_BATCH_SIZE="0")
    assert len(problems) == 4
    for name in ("PORT", "DTYPE", "MESSAGES_API_ENABLED", "MAX_BATCH_SIZE"):
        assert any(problem.startswith(name) for problem in problems)


def test_aliases_may_agree_but_not_differ() -> None:
    assert Settings.from_environ({"HF_MODEL_ID": "a", "MODEL_ID": "a"}).model.model_id == "a"
    [problem] = _problems(MAX_INPUT_TOKENS="5", MAX_INPUT_LENGTH="6")
    assert "MAX_INPUT_TOKENS and MAX_INPUT_LENGTH" in problem


# Section "Configuration" of TGI's launcher reference, and what its code reads without a flag.
TGI_VARIABLES = """
MODEL_ID REVISION TOKENIZER_CONFIG_PATH SHARDED NUM_SHARD QUANTIZE SPECULATE DTYPE KV_CACHE_DTYPE
TRUST_REMOTE_CODE LORA_ADAPTERS ROPE_SCALING ROPE_FACTOR HF_TOKEN HUGGING_FACE_HUB_TOKEN
HF_API_TOKEN WEIGHTS_CACHE_OVERRIDE MAX_CONCURRENT_REQUESTS MAX_BEST_OF MAX_STOP_SEQUENCES
MAX_TOP_N_TOKENS MAX_CLIENT_BATCH_SIZE MAX_INPUT_TOKENS
MAX_INPUT_LENGTH MAX_TOTAL_TOKENS MAX_BATCH_PREFILL_TOKENS
MAX_BATCH_TOTAL_TOKENS MAX_BATCH_SIZE WAITING_SERVED_RATIO MAX_WAITING_TOKENS CUDA_GRAPHS
CUDA_MEMORY_FRACTION VALIDATION_WORKERS PAYLOAD_LIMIT MAX_IMAGE_FETCH_SIZE ENABLE_PREFILL_LOGPROBS
DISABLE_GRAMMAR_SUPPORT DISABLE_CUSTOM_KERNELS WATERMARK_GAMMA WATERMARK_DELTA API_KEY
CORS_ALLOW_ORIGIN PORT PROMETHEUS_PORT OTLP_ENDPOINT OTLP_SERVICE_NAME JSON_OUTPUT LOG_LEVEL
LOG_COLORIZE USAGE_STATS NGROK NGROK_AUTHTOKEN NGROK_EDGE MASTER_ADDR MASTER_PORT SHARD_UDS_PATH
GRACEFUL_TERMINATION_TIMEOUT ATTENTION PREFIX_CACHING PREFILL_CHUNKING USE_FLASH_ATTENTION
TGI_WIGGLE_ROOM COMPUTE_TYPE AIP_HTTP_PORT AIP_HEALTH_ROUTE AIP_PREDICT_ROUTE
""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", TGI_VARIABLES)
def test_every_tgi_variable_is_known(name: str) -> None:
    read = setting_names()
    assert (name in read) + (name in REFUSED) + (name in WITHOUT_EFFECT) == 1


def test_only_variables_with_effect_have_tgis_default() -> None:
    assert set(DEFAULTS) <= set(setting_names())


def test_variables_without_effect_are_accepted_and_named() -> None:
    environ = {"PREFILL_CHUNKING": "0", "SHARDED": "true", "NGROK": " ", "HOSTNAME": "abc"}
    assert Settings.from_environ(environ) == Settings()
    assert without_effect(environ) == ["SHARDED", "PREFILL_CHUNKING"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("info,text_generation_router=debug", "info"),
        ("text_generation_router=debug,warn", "warning"),
        ("text_generation_launcher=error,h2=debug", "error"),
        ("TRACE", "debug"),
        ("off", "error"),
    ],
)
def test_tgis_log_levels_are_understood(given: str, meant: str) -> None:
    assert Settings.from_environ({"LOG_LEVEL": given}).observability.log_level == meant


def test_a_file_must_exist_and_a_share_be_one(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    problems = _problems(TOKENIZER_CONFIG_PATH=str(path), CUDA_MEMORY_FRACTION="1.1")
    assert [problem.split(":")[0] for problem in problems] == [
        "TOKENIZER_CONFIG_PATH",
        "CUDA_MEMORY_FRACTION",
    ]
    path.write_text("{}")
    settings = Settings.from_environ(
        {"TOKENIZER_CONFIG_PATH": str(path), "CUDA_MEMORY_FRACTION": "0.5"}
    )
    assert settings.model.tokenizer_config_path == str(path)
    assert settings.placement.cuda_memory_fraction == 0.5


@pytest.mark.parametrize("value", ["collector:4318", "grpc://a", "http://", "http://a:x", "4317"])
def test_an_endpoint_must_be_a_url(value: str) -> None:
    [problem] = _problems(OTLP_ENDPOINT=value)
    assert problem.startswith("OTLP_ENDPOINT: must be a URL")


def test_rotary_positions_are_stretched_linearly_only() -> None:
    settings = Settings.from_environ({"ROPE_SCALING": "linear", "ROPE_FACTOR": "2"})
    assert (settings.model.rope_scaling, settings.model.rope_factor) == ("linear", 2.0)
    problems = _problems(ROPE_SCALING="dynamic", ROPE_FACTOR="0.5")
    assert "must be linear" in problems[0]
    assert problems[1].startswith("ROPE_FACTOR: must be at least 1")


def test_sizes_of_recorded_batches_and_space_on_the_host() -> None:
    environ = {"CUDA_GRAPHS": "8,1,8", "SWAP_SPACE": "0.5", "OVERLAP_STEPS": "0"}
    settings = Settings.from_environ(environ)
    assert (settings.engine.cuda_graphs, settings.memory.swap_space) == ((1, 8), 0.5)
    assert settings.engine.overlap_steps is False
    assert Settings.from_environ({"CUDA_GRAPHS": "0"}).engine.cuda_graphs == ()
    for value in ("many", "1,", "0,1", "5000", "-1"):
        [problem] = _problems(CUDA_GRAPHS=value)
        assert problem.startswith("CUDA_GRAPHS: must be batch sizes")
    [problem] = _problems(SWAP_SPACE="-1")
    assert problem == "SWAP_SPACE: must be at least 0, not '-1'"


def test_limits_must_fit_each_other() -> None:
    [problem] = _problems(MAX_INPUT_TOKENS="100", MAX_TOTAL_TOKENS="100")
    assert "100" in problem
    [problem] = _problems(MAX_TOTAL_TOKENS="100", MAX_BATCH_TOTAL_TOKENS="50")
    assert "MAX_BATCH_TOTAL_TOKENS" in problem
    [problem] = _problems(MAX_BATCH_PREFILL_TOKENS="100", MAX_BATCH_TOTAL_TOKENS="50")
    assert "MAX_BATCH_PREFILL_TOKENS" in problem


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_values_are_refused_by_name(name: str) -> None:
    assert _problems(**{name: "x"})[0].startswith(name)


def test_secrets_are_masked_everywhere() -> None:
    settings = Settings.from_environ({"HF_TOKEN": "s3cret", "API_KEY": "s3cret"})
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(describe(settings))
    with pytest.raises(ConfigError) as caught:
        Settings.from_environ({"HF_TOKEN": "s3cret", "HF_API_TOKEN": "0ther"})
    assert "s3cret" not in str(caught.value)


def test_sagemakers_port_wins() -> None:
    assert Settings.from_environ({"PORT": "1", "SAGEMAKER_BIND_TO_PORT": "2"}).server.port == 2


def test_no_two_settings_share_a_variable() -> None:
    assert len(setting_names()) == len(set(setting_names()))


def test_every_setting_has_a_place_in_the_order() -> None:
    assert [row.name for row in describe(Settings())] == ORDER


def test_no_file_of_settings_is_long() -> None:
    folder = Path(str(files("container.settings")))
    assert max(len(path.read_text().splitlines()) for path in folder.glob("*.py")) <= 300


def test_the_page_in_docs_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == markdown_page(), "run `make docs`"


def test_the_command_prints_every_setting() -> None:
    command = [sys.executable, "-m", "container", "settings", "--json"]
    env = {"PATH": os.environ["PATH"], "PORT": "81"}
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    printed = json.loads(out)
    assert printed["PORT"] == "81"
    assert set(printed) == {row.name for row in describe(Settings())}


def test_the_command_explains_errors_and_exits_with_2() -> None:
    command = [sys.executable, "-m", "container", "settings"]
    env = {"PATH": os.environ["PATH"], "PORT": "x"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "PORT" in done.stderr


def test_every_format_of_tool_calls_can_be_set() -> None:
    assert FORMATS.keys() <= {*TOOL_CALL_PARSERS, *OTHER_TOOL_CALL_PARSERS}
    assert (
        Settings.from_environ({"TOOL_CALL_PARSER": "mistral"}).requests.tool_call_parser
        == "mistral"
    )
    with pytest.raises(ConfigError, match="TOOL_CALL_PARSER"):
        Settings.from_environ({"TOOL_CALL_PARSER": "telepathy"})


def test_the_names_of_other_servers_can_be_set() -> None:
    for name in OTHER_TOOL_CALL_PARSERS:
        assert Settings.from_environ({"TOOL_CALL_PARSER": name}).requests.tool_call_parser == name
        assert style_of("{{ tools }}", name).format_name != "unknown"


@pytest.mark.parametrize(
    ("environ", "whole_s", "stream_s"),
    [
        ({}, math.inf, math.inf),
        ({"REQUEST_DEADLINE": "55"}, 55, 55),
        ({"REQUEST_DEADLINE": "55", "REQUEST_DEADLINE_STREAMED": "475"}, 55, 475),
        ({"REQUEST_DEADLINE": "55", "REQUEST_DEADLINE_STREAMED": "0"}, 55, math.inf),
        ({"REQUEST_DEADLINE": "0", "REQUEST_DEADLINE_STREAMED": "9.5"}, math.inf, 9.5),
        ({"REQUEST_DEADLINE": "55", "SAGEMAKER_BATCH": "true"}, math.inf, math.inf),
    ],
)
def test_deadlines_are_off_by_default_and_in_a_batch_transform(
    environ: dict[str, str], whole_s: float, stream_s: float
) -> None:
    server = Settings.from_environ(environ).server
    assert (server.deadline_s, server.stream_deadline_s) == (whole_s, stream_s)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 64),
        ({"MAX_CONCURRENT_REQUESTS": "1"}, 1),
        ({"MAX_CONCURRENT_REQUESTS": "9"}, 4),
        ({"MAX_CONCURRENT_REQUESTS": "9", "SAGEMAKER_BATCH": "true"}, 9),
    ],
)
def test_records_of_batch_bodies_have_half_of_the_requests(
    environ: dict[str, str], expected: int
) -> None:
    assert Settings.from_environ(environ).max_batch_requests == expected
