"""Settings: frozen groups by subject, read once from the environment by a pure function.

Each field names its environment variables (the documented one first, then aliases that users of TGI
and SageMaker know), its default and its meaning. An empty variable counts as unset, since
SageMaker's SDK sends such. One error reports all problems.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_type_hints

from container.errors import ConfigError
from container.settings.engine import EngineSettings, MemorySettings, PlacementSettings
from container.settings.field import Field, SettingRow, overridden, read, row
from container.settings.model import EmbeddingSettings, ModelSettings
from container.settings.order import ORDER
from container.settings.requests import RequestSettings
from container.settings.server import (
    HandlerSettings,
    ObservabilitySettings,
    SageMakerSettings,
    ServerSettings,
)

# Variables known from TGI whose silent loss would change answers or open a door.
REFUSED = {
    "WEIGHTS_CACHE_OVERRIDE": "set HF_MODEL_ID to the folder with the weights",
}


@dataclass(frozen=True, slots=True)
class EmbeddingSource:
    """A Hub id or folder, its revision, and the variable that names it."""

    model_id: str
    revision: str | None
    variable: str


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, parsed and checked. Give a function its group or values, not this whole."""

    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    embedding: EmbeddingSettings = dataclasses.field(default_factory=EmbeddingSettings)
    placement: PlacementSettings = dataclasses.field(default_factory=PlacementSettings)
    memory: MemorySettings = dataclasses.field(default_factory=MemorySettings)
    engine: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    requests: RequestSettings = dataclasses.field(default_factory=RequestSettings)
    server: ServerSettings = dataclasses.field(default_factory=ServerSettings)
    sagemaker: SageMakerSettings = dataclasses.field(default_factory=SageMakerSettings)
    handlers: HandlerSettings = dataclasses.field(default_factory=HandlerSettings)
    observability: ObservabilitySettings = dataclasses.field(default_factory=ObservabilitySettings)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Parse an environment. Raises ConfigError with every problem in it."""
        values: dict[str, dict[str, Any]] = {name: {} for name in _groups()}
        errors = [_refusal(name) for name in REFUSED if environ.get(name)]
        for group, field in _fields():
            try:
                values[group][field.name] = read(field, environ)
            except ValueError as problem:
                errors.append(str(problem))
        settings = cls(**{name: group(**values[name]) for name, group in _groups().items()})
        errors += _conflicts(settings)
        if errors:
            raise ConfigError(errors)
        return settings

    @property
    def max_batch_requests(self) -> int:
        """How many records of batch bodies may run: half of MAX_CONCURRENT_REQUESTS.

        All of it in a batch transform job, which sends nothing else.
        """
        most = self.engine.max_concurrent_requests
        return most if self.server.is_batch else max(1, most // 2)

    @property
    def num_batch_slots(self) -> int:
        """How many records of batch bodies one frontend, of several, may have running."""
        of_all = self.max_batch_requests * self.placement.data_parallel
        return max(1, of_all // self.server.num_frontends)

    @property
    def is_embedding_task(self) -> bool:
        """Whether the one model that is named is the embedding model."""
        return self.embedding.is_for_task(self.model.task)

    def embedding_source(self) -> EmbeddingSource | None:
        """Where the embedding model comes from, if there is to be one. Raises ConfigError."""
        if self.is_embedding_task:
            return EmbeddingSource(self.model.model_source(), self.model.revision, "HF_MODEL_ID")
        model_id, revision = self.embedding.embedding_model_id, self.embedding.embedding_revision
        if model_id is None:
            return None
        return EmbeddingSource(model_id, revision, "EMBEDDING_MODEL_ID")


class GroupedField(NamedTuple):
    """A field and the name of the group that it belongs to."""

    group: str
    field: Field


def _groups() -> dict[str, Any]:
    """The class of each group, by the name of its attribute."""
    return get_type_hints(Settings)


def _fields() -> list[GroupedField]:
    """Every field of every group, in ORDER."""
    fields = [
        GroupedField(name, field)
        for name, group in _groups().items()
        for field in dataclasses.fields(group)
    ]
    position = {name: index for index, name in enumerate(ORDER)}
    return sorted(fields, key=lambda each: position[each.field.metadata["names"][0]])


def _refusal(name: str) -> str:
    return f"{name}: not supported in this version ({REFUSED[name]}); unset it"


def _conflicts(settings: Settings) -> list[str]:
    engine, placement = settings.engine, settings.placement
    longest_input, longest = engine.max_input_tokens, engine.max_total_tokens
    if longest_input and longest and longest_input >= longest:
        return [
            f"MAX_INPUT_TOKENS ({longest_input}) must be less than MAX_TOTAL_TOKENS ({longest})"
        ]
    is_split = placement.data_parallel > 1 or (placement.tensor_parallel or 1) > 1
    if placement.max_memory and is_split:
        return ["MAX_MEMORY is for one copy of a model that is not split: unset DATA_PARALLEL and "
                "TENSOR_PARALLEL, or MAX_MEMORY"]  # fmt: skip
    capacity = settings.memory.max_batch_total_tokens
    if longest and capacity and longest > capacity:
        return [f"MAX_TOTAL_TOKENS ({longest}) must not exceed MAX_BATCH_TOTAL_TOKENS ({capacity})"]
    step = engine.max_batch_prefill_tokens
    if step and capacity and step > capacity:
        return [
            f"MAX_BATCH_PREFILL_TOKENS ({step}) must not exceed MAX_BATCH_TOTAL_TOKENS ({capacity})"
        ]
    return []


def overridden_names(environ: Mapping[str, str]) -> list[str]:
    """The variables that are set and do not count, because another one of a setting wins."""
    return [name for _, field in _fields() for name in overridden(field, environ)]


def setting_names() -> list[str]:
    """Every variable that is a setting, aliases too."""
    return [name for _, field in _fields() for name in field.metadata["names"]]


def describe(settings: Settings) -> list[SettingRow]:
    """Every setting with its variables, its value and its default, secrets masked."""
    return [row(field, getattr(getattr(settings, group), field.name)) for group, field in _fields()]
