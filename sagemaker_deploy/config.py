"""The configuration of one deployment: a YAML or TOML file and flags, as one typed value.

Unknown keys are errors. Nothing here calls AWS; `plan/` turns the values into steps.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from sagemaker_deploy.errors import ConfigError

# SageMaker gives the container of a serverless endpoint no longer than this to start.
SERVERLESS_START_S = 180
NAME = r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*$"
ROLE = r"^arn:aws[a-z\-]*:iam::\d{12}:role/.+$"
S3 = r"^s3://[^/]+/.+$"
# Variables that are secrets in all common containers; they belong under `secrets`.
SECRET_NAMES = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN", "API_KEY"}

Name = Annotated[str, Field(pattern=NAME, max_length=50)]
Seconds = Annotated[int, Field(ge=60, le=3600)]
Percent = Annotated[int, Field(ge=1, le=100)]


class Section(BaseModel):
    """A part of the file: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """The model. `id` is a Hub id; `data` a local folder, s3://.../ or s3://....tar.gz."""

    id: str | None = None
    data: str | None = None
    code: Path | None = None
    additional: dict[str, Annotated[str, Field(pattern=S3)]] = {}
    parameters_billion: Annotated[float, Field(gt=0)] | None = None
    bytes_per_parameter: Annotated[float, Field(gt=0)] = 2.0

    @property
    def is_prefix(self) -> bool:
        """Whether `data` is a folder of files on S3, not an archive."""
        data = self.data or ""
        return data.startswith("s3://") and not data.endswith(".tar.gz")


class Serverless(Section):
    """A serverless endpoint (CPU only)."""

    memory_mb: Literal[1024, 2048, 3072, 4096, 5120, 6144] = 6144
    max_concurrency: Annotated[int, Field(ge=1, le=200)] = 5
    provisioned_concurrency: Annotated[int, Field(ge=1, le=200)] | None = None


class Async(Section):
    """An asynchronous endpoint: responses go to S3."""

    output: Annotated[str, Field(pattern=S3)]
    failures: Annotated[str, Field(pattern=S3)] | None = None
    max_concurrent_per_instance: Annotated[int, Field(ge=1, le=1000)] | None = None
    success_topic: str | None = None
    error_topic: str | None = None


class Component(Section):
    """The model as an inference component, which can share its instances with others."""

    copies: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[int, Field(ge=1)] | None = None
    cpus: Annotated[float, Field(gt=0)] | None = None
    memory_mb: Annotated[int, Field(ge=128)] = 1024
    cache_model_data: bool = True


class Scaling(Section):
    """Application Auto Scaling: a target of concurrent requests for one model copy."""

    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)]
    target_concurrency: Annotated[float, Field(gt=0)]
    scale_in_cooldown_s: Annotated[int, Field(ge=0)] = 300
    scale_out_cooldown_s: Annotated[int, Field(ge=0)] = 30


class Update(Section):
    """How a new version replaces the old one, and the alarms that roll it back."""

    strategy: Literal["all_at_once", "canary", "linear", "rolling"] = "all_at_once"
    step_percent: Percent = 20
    wait_s: Annotated[int, Field(ge=0, le=3600)] = 300
    alarms: tuple[str, ...] = ()


class Network(Section):
    """The VPC and the isolation of the container."""

    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    isolated: bool = False


class Capture(Section):
    """Data capture of requests and responses."""

    destination: Annotated[str, Field(pattern=S3)]
    percent: Percent = 100


class Config(Section):
    """One deployment."""

    name: Name
    image: str
    role: Annotated[str, Field(pattern=ROLE)]
    region: str | None = None
    profile: str | None = None
    bucket: str | None = None
    cuda: Annotated[str, Field(pattern=r"^\d+\.\d+$")] | None = None
    model: Model = Model()
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    instance_type: str | None = None
    instance_types: tuple[str, ...] = ()
    instance_count: Annotated[int, Field(ge=1)] = 1
    max_total_tokens: Annotated[int, Field(ge=2)] = 4096
    concurrency: Annotated[int, Field(ge=1)] = 16
    health_check_timeout_s: Seconds = 900
    download_timeout_s: Seconds = 900
    volume_gb: Annotated[int, Field(ge=1, le=512)] | None = None
    routing: Literal["least_outstanding", "random", "prefix_aware"] = "least_outstanding"
    ami: str | None = None
    multi_model: bool = False
    serverless: Serverless | None = None
    asynchronous: Async | None = None
    component: Component | None = None
    scaling: Scaling | None = None
    update: Update = Update()
    network: Network = Network()
    capture: Capture | None = None
    kms_key: str | None = None
    tags: dict[str, str] = {}

    @property
    def start_timeout_s(self) -> int:
        """Seconds that the container may take to start."""
        return SERVERLESS_START_S if self.serverless else self.health_check_timeout_s

    @property
    def has_gpus(self) -> bool:
        """Whether any instance type of this deployment has GPUs."""
        return any(re.match(r"ml\.(g|p)\d", name) for name in self.all_instance_types)

    @property
    def all_instance_types(self) -> tuple[str, ...]:
        """The instance types, in order of preference."""
        return self.instance_types or ((self.instance_type,) if self.instance_type else ())


def load(path: Path | None, flags: Mapping[str, Any], settings: tuple[str, ...] = ()) -> Config:
    """Read a file and override it with flags and `key.path=value` settings. Raises ConfigError."""
    values = _read(path) if path else {}
    for key, value in flags.items():
        if value not in (None, (), {}):
            _set(values, key.split("."), value)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError([f"--set {setting}: must be key=value, as in scaling.max=4"])
        _set(values, key.split("."), yaml.safe_load(text))
    return parse(values)


def parse(values: Mapping[str, Any]) -> Config:
    """Check the values of a configuration. Raises ConfigError with every problem."""
    try:
        config = Config.model_validate(values)
    except pydantic.ValidationError as error:
        problems = [_problem(detail) for detail in error.errors()]
        raise ConfigError(problems) from error
    problems = _conflicts(config)
    if problems:
        raise ConfigError(problems)
    return config


def _conflicts(config: Config) -> list[str]:
    options = [
        name for name in ("serverless", "component", "asynchronous") if getattr(config, name)
    ]
    checks = {
        f"{' and '.join(options)}: choose one of them": len(options) > 1,
        "instance_type: not set; for example ml.g5.xlarge, or give `serverless`": (
            not config.serverless and not config.all_instance_types
        ),
        "instance_type: a serverless endpoint has none": (
            bool(config.serverless and config.all_instance_types)
        ),
        "instance_type and instance_types: give one of them": (
            bool(config.instance_type and config.instance_types)
        ),
        "instance_types: at most 5": len(config.instance_types) > 5,
        "model: give `id` (a Hub id) or `data` (a folder, s3://.../ or s3://....tar.gz)": (
            not config.model.id and not config.model.data and "HF_MODEL_ID" not in config.env
        ),
        "model.code: needs model.data to travel with": (
            config.model.code is not None and not config.model.data
        ),
        "model.data: serverless and multi-model endpoints take s3://....tar.gz only": (
            bool((config.serverless or config.multi_model) and config.model.is_prefix)
            and not config.multi_model
        ),
        "scaling.min: 0 needs `component` or `asynchronous`": (
            bool(config.scaling and config.scaling.min == 0)
            and not (config.component or config.asynchronous)
        ),
        "scaling.max: less than scaling.min": (
            bool(config.scaling and config.scaling.max < config.scaling.min)
        ),
        "scaling: a serverless endpoint scales by itself; see serverless.max_concurrency": (
            bool(config.scaling and config.serverless)
        ),
        "network: give subnets and security_groups together": (
            bool(config.network.subnets) != bool(config.network.security_groups)
        ),
        "network.isolated: the container cannot reach the Hub; give model.data": (
            config.network.isolated and not config.model.data
        ),
    }
    problems = [text for text, is_wrong in checks.items() if is_wrong]
    for name in sorted(SECRET_NAMES & config.env.keys()):
        problems.append(
            f"env.{name}: a secret; put its Secrets Manager name under secrets.{name} instead"
        )
    for name in sorted(config.env.keys() & config.secrets.keys()):
        problems.append(f"env.{name}: also under secrets; give it once")
    return problems


def _problem(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{path}: not set"
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key"
    text = error["msg"]  # only its first letter: a pattern in it keeps its case
    return f"{path}: {text[:1].lower()}{text[1:]}, not {error['input']!r}"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError([f"{path}: no such file"])
    try:
        if path.suffix == ".toml":
            return tomllib.loads(path.read_text())
        values = yaml.safe_load(path.read_text())
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: {' '.join(str(error).split())}"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: must hold keys and values"])
    return values


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError([f"{'.'.join(path)}: {key} is not a section"])
    if isinstance(value, Mapping) and isinstance(values.get(path[-1]), dict):
        values[path[-1]] |= value
    else:
        values[path[-1]] = value
