"""The endpoints behind the proxy: their models' names, containers and options.

A file (YAML or TOML) lists them under `models:`; on the command line each is NAME=ENDPOINT or
NAME=ENDPOINT/COMPONENT.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from sagemaker_deploy.config import read_file
from sagemaker_deploy.errors import ConfigError

NAME = r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"


class ContainerKind(StrEnum):
    """Whose image answers; `auto` detects it once."""

    AUTO = "auto"
    OURS = "ours"
    TGI = "tgi"
    LMI = "lmi"
    VLLM = "vllm"


class Target(BaseModel):
    """An endpoint, component, variant or archive that answers for one model name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Annotated[str, Field(pattern=f"^{NAME}$")]
    component: Annotated[str, Field(pattern=f"^{NAME}$")] | None = None
    variant: Annotated[str, Field(pattern=f"^{NAME}$")] | None = None
    target_model: str | None = None
    container: ContainerKind = ContainerKind.AUTO
    served_model: str | None = None
    chat_template: Path | None = None
    sessions: bool = False

    def fields(self) -> dict[str, str]:
        """Return the address as header fields of InvokeEndpoint."""
        names = {
            "InferenceComponentName": self.component,
            "TargetVariant": self.variant,
            "TargetModel": self.target_model,
        }
        return {name: value for name, value in names.items() if value is not None}


class Targets:
    """The models of the proxy. A proxy with one model, or a default, answers to every name."""

    def __init__(self, models: Mapping[str, Target], default: str | None = None) -> None:
        if not models:
            raise ConfigError(["models: none; give NAME=ENDPOINT, or a file with --models"])
        if default is not None and default not in models:
            raise ConfigError([f"default: {default!r} is none of the models: {', '.join(models)}"])
        self.models = dict(models)
        self.default = next(iter(models)) if len(models) == 1 else default

    def find(self, name: object) -> tuple[str, Target] | None:
        """Return the model that a client means, or None if it means none."""
        if isinstance(name, str) and name in self.models:
            return name, self.models[name]
        if self.default is None:
            return None
        return self.default, self.models[self.default]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: dict[str, Target]
    default: str | None = None


def load(
    path: Path | None, options: Sequence[str], container: ContainerKind = ContainerKind.AUTO
) -> Targets:
    """Read the models of a file and of options; `container` is that of the options.

    Raises ConfigError.
    """
    file = _parse(read_file(path)) if path else _File(models={})
    models = dict(file.models)
    for option in options:
        name, target = parse_option(option, container)
        models[name] = target
    return Targets(models, file.default)


def parse_option(option: str, container: ContainerKind) -> tuple[str, Target]:
    """Parse NAME=ENDPOINT[/COMPONENT], or ENDPOINT[/COMPONENT] alone. Raises ConfigError."""
    name, _, address = option.rpartition("=")
    endpoint, _, component = address.partition("/")
    try:
        target = Target(endpoint=endpoint, component=component or None, container=container)
    except pydantic.ValidationError as error:
        raise ConfigError(
            [f"model {option!r}: must be NAME=ENDPOINT or NAME=ENDPOINT/COMPONENT"]
        ) from error
    return name or component or endpoint, target


def _parse(values: Any) -> _File:
    try:
        return _File.model_validate(values)
    except pydantic.ValidationError as error:
        raise ConfigError(
            [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        ) from error
