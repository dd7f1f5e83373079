"""Options that several commands share, and the Config and Aws that they create."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sagemaker_deploy import config as configuration
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_FILES = ("deploy.yaml", "deploy.yml", "deploy.toml")

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes = click.option("--yes", is_flag=True, help="Do not ask.")
region = click.option("--region", help="AWS region; else as the AWS command line finds it.")
profile = click.option("--profile", help="Profile of ~/.aws/config.")
bucket = click.option("--bucket", help="Where a folder on this machine is uploaded.")
poll = click.option("--poll", default=10.0, show_default=True, help="Seconds between looks at AWS.")


def config_options(command: F) -> F:
    """Add the options of a configuration to a command, which gets one `config`."""

    @click.option(
        "-f", "--config", "path", type=click.Path(path_type=Path),
        help="YAML or TOML file; deploy.yaml here, if there is one.",
    )  # fmt: skip
    @click.option("--name", help="Name of the deployment and its endpoint.")
    @click.option("--image", help="Image in ECR, with tag or digest.")
    @click.option("--role", help="ARN of the execution role.")
    @click.option("--model", help="Hub id (HF_MODEL_ID).")
    @click.option("--model-data", help="Folder here, s3://.../ or s3://....tar.gz.")
    @click.option("--instance-type", help="For example ml.g5.xlarge.")
    @click.option("--instance-count", type=int)
    @click.option("--env", multiple=True, metavar="NAME=VALUE", help="Variable of the container.")
    @click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                  help="Any key of the file, as in scaling.max=4.")  # fmt: skip
    @region
    @profile
    @functools.wraps(command)
    def wrapped(
        path: Path | None,
        name: str | None,
        image: str | None,
        role: str | None,
        model: str | None,
        model_data: str | None,
        instance_type: str | None,
        instance_count: int | None,
        env: tuple[str, ...],
        settings: tuple[str, ...],
        region: str | None,
        profile: str | None,
        **rest: Any,
    ) -> Any:
        flags = {
            "name": name, "image": image, "role": role, "model.id": model,
            "model.data": model_data, "instance_type": instance_type,
            "instance_count": instance_count, "env": pairs("--env", env), "region": region,
            "profile": profile,
        }  # fmt: skip
        config = configuration.load(path or default_file(), flags, settings)
        return command(config=config, **rest)

    return wrapped  # type: ignore[return-value]


def target_options(command: F) -> F:
    """Add an endpoint's name and connection options to a command; it gets `name` and `aws`."""

    @click.argument("name", required=False)
    @click.option("-f", "--config", "path", type=click.Path(path_type=Path),
                  help="File whose name, region and profile are meant.")  # fmt: skip
    @region
    @profile
    @functools.wraps(command)
    def wrapped(
        name: str | None, path: Path | None, region: str | None, profile: str | None, **rest: Any
    ) -> Any:
        name, aws, known = target(name, path, region, profile)
        return command(name=name, aws=aws, config=known, **rest)

    return wrapped  # type: ignore[return-value]


def target(
    name: str | None, path: Path | None, region: str | None, profile: str | None
) -> tuple[str, Aws, Config | None]:
    """Return the name that is meant, a connection, and the file's configuration if there is one.

    Raises ConfigError without a name.
    """
    file = path or default_file()
    known = configuration.load(file, {}) if file else None
    name = name or (known.name if known else None)
    if not name:
        raise ConfigError(["NAME: give the endpoint's name, or a file with -f"])
    aws = Aws(
        region or (known.region if known else None),
        profile or (known.profile if known else None),
    )
    return name, aws, known


def aws_of(config: Config) -> Aws:
    """Connect to AWS with a configuration's region and profile."""
    return Aws(config.region, config.profile)


def pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    """Parse NAME=VALUE options to a mapping. Raises ConfigError."""
    bad = [value for value in values if "=" not in value]
    if bad:
        raise ConfigError([f"{option} {value}: must be NAME=VALUE" for value in bad])
    return dict(value.split("=", 1) for value in values)


def default_file() -> Path | None:
    """Return the path of the configuration in this folder, if there is one."""
    return next((Path(name) for name in DEFAULT_FILES if Path(name).is_file()), None)
