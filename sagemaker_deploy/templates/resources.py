"""The resources of a deployment as the steps that would create them, for templates. Pure."""

from collections.abc import Iterator

from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.plan import checks, monitoring, requests, variants
from sagemaker_deploy.plan.capacity import scaling, schedules
from sagemaker_deploy.plan.steps import Params, Step


def checked_data(config: Config) -> str | None:
    """Return the URL of the model's files. Raises ConfigError for what no template can do."""
    if problems := checks.problems(config):
        raise ConfigError(problems)
    data = config.model.data
    if data and not data.startswith("s3://"):
        raise ConfigError(["model.data: a template needs it on S3 (s3://...), not on this machine"])
    return data


def models(config: Config, data: str | None) -> dict[str, Params]:
    """Return CreateModel's parameters for each variant, by the variant's name."""
    own = requests.model(config, config.image, data)
    return {variants.VARIANT: own, **requests.other_models(config)}


def endpoint_config(config: Config, named: dict[str, Params]) -> Params:
    """Return CreateEndpointConfig's parameters."""
    names = {variant: str(params["ModelName"]) for variant, params in named.items()}
    return requests.endpoint_config(config, names[variants.VARIANT], names)


def around(config: Config) -> Iterator[Step]:
    """Yield the steps for scaling, schedules, alarms and the dashboard."""
    yield from monitoring.alarm_steps(config)
    yield from scaling.steps(config)
    yield from schedules.steps(config)
    yield from monitoring.dashboard_steps(config)


def camel(name: str) -> str:
    """Return a name of letters and digits only, each part with a capital."""
    return "".join(part[:1].upper() + part[1:] for part in name.replace("_", "-").split("-"))
