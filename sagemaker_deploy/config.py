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
from pydantic import Field

from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.sections import (
    ROLE,
    Async,
    Capture,
    Changes,
    Component,
    Metrics,
    Model,
    Monitoring,
    Name,
    Network,
    Scaling,
    Seconds,
    Section,
    Serverless,
    Shadow,
    Update,
    Variant,
)

# SageMaker gives the container of a serverless endpoint no longer than this to start.
SERVERLESS_START_S = 180
# Variables that are secrets in all common containers; they belong under `secrets`.
SECRET_NAMES = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN", "API_KEY"}


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
    env: dict[str, str] = Field(default_factory=dict)
    secrets: dict[str, str] = Field(default_factory=dict)
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
    weight: Annotated[float, Field(ge=0)] = 1.0
    variants: dict[Name, Variant] = Field(default_factory=dict)
    shadow: Shadow | None = None
    metrics: Metrics | None = None
    monitoring: Monitoring | None = None
    update: Update = Update()
    network: Network = Network()
    capture: Capture | None = None
    kms_key: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)

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
            bool(config.serverless and config.model.is_prefix and not config.multi_model)
        ),
        "scaling.min: 0 needs `component` or `asynchronous`, in schedules too": (
            bool(config.scaling and config.scaling.least == 0)
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
    return problems + _schedule_problems(config.scaling) + _variant_problems(config)


def _schedule_problems(scaling: Scaling | None) -> list[str]:
    problems = []
    for name, schedule in scaling.schedules.items() if scaling else ():
        key = f"scaling.schedules.{name}"
        if schedule.min is None and schedule.max is None:
            problems.append(f"{key}: give min, max or both; it would change nothing")
        elif (schedule.min or 0) > (schedule.max if schedule.max is not None else 10**6):
            problems.append(f"{key}.max: {schedule.max} is less than its min, {schedule.min}")
    return problems


def _variant_problems(config: Config) -> list[str]:
    problems = []
    others: dict[str, Changes] = {
        f"variants.{name}": each for name, each in config.variants.items()
    }
    if config.shadow:
        others["shadow"] = config.shadow
    for key, changes in others.items():
        data = changes.model.data if changes.model else None
        if data and not data.startswith("s3://"):
            problems.append(f"{key}.model.data: {data} is on this machine; put it on S3")
        elif changes.model and changes.model.code:
            problems.append(f"{key}.model.code: only the deployment's own model is packed with it")
        elif changes.model is None and config.model.data and not config.model.data.startswith("s3"):
            problems.append(f"{key}.model: needed, as model.data is on this machine")
    if config.shadow and config.variants:
        problems.append("shadow and variants: SageMaker takes a shadow beside one variant only")
    excluded = ("serverless", "component", "asynchronous", "multi_model")
    for name in [each for each in excluded if getattr(config, each)] if others else []:
        problems.append(f"{name}: cannot be combined with {next(iter(others))}")
    return problems


def _problem(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{path}: not set"
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key"
    text = error["msg"]  # only its first letter: a pattern in it keeps its case
    return f"{path}: {text[:1].lower()}{text[1:]}, not {error['input']!r}"


def read_file(path: Path) -> Any:
    """Parse a YAML or TOML file. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError([f"{path}: no such file"])
    try:
        if path.suffix == ".toml":
            return tomllib.loads(path.read_text())
        return yaml.safe_load(path.read_text())
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: {' '.join(str(error).split())}"]) from error


def _read(path: Path) -> dict[str, Any]:
    values = read_file(path)
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
