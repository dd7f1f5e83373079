"""The parts of local endpoints: variants, components, and the targets of invocations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sagemaker_deploy.local.containers.fleet import Spec
from sagemaker_deploy.local.containers.process import Container
from sagemaker_deploy.local.control_plane.resources import Record
from sagemaker_deploy.local.refusals import control_validation


@dataclass
class Unit:
    """A variant or an inference component, which has a container."""

    name: str
    settings: Mapping[str, Any]
    spec: Spec | None
    container: Container | None = None
    # For an adapter: the component whose container has loaded it.
    base: str | None = None


@dataclass
class LocalEndpoint:
    """One endpoint. Changed only by `Endpoints`, under its lock."""

    name: str
    config: Record
    variants: dict[str, Unit] = field(default_factory=dict)
    components: dict[str, Unit] = field(default_factory=dict)

    @property
    def has_components(self) -> bool:
        """Whether the models are inference components."""
        return any(unit.spec is None for unit in self.variants.values())


@dataclass(frozen=True, slots=True)
class Target:
    """The target of one invocation."""

    endpoint: str
    variant: str
    unit: Unit
    container: Container
    config: Mapping[str, Any]

    @property
    def container_name(self) -> str:
        """The name in error messages."""
        return str(self.unit.settings.get("ContainerHostname", "primary"))

    @property
    def is_serverless(self) -> bool:
        """Whether the limits of serverless endpoints apply."""
        return "ServerlessConfig" in self.unit.settings

    @property
    def multi_model_prefix(self) -> str | None:
        """The URL of a multi-model endpoint's models."""
        spec = self.unit.spec
        return str(spec.definition["ModelDataUrl"]) if spec and spec.is_multi_model else None

    @property
    def is_async(self) -> bool:
        """Whether the endpoint serves InvokeEndpointAsync only."""
        return "AsyncInferenceConfig" in self.config


def container_definition(model: Record) -> Mapping[str, Any]:
    """Return the only container of a model. Raises Refusal for pipelines."""
    containers = model.get("Containers") or [model.get("PrimaryContainer")]
    if len(containers) != 1 or containers[0] is None:
        name = model["ModelName"]
        raise control_validation(f"Model {name}: the local endpoint runs models of one container.")
    return dict(containers[0])
