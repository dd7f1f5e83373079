"""The options of the app, picked from the settings."""

from dataclasses import dataclass

from container.frontend.apis.sagemaker.invocations import BatchParameters
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.request_context import Deadlines
from container.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of the HTTP side."""

    payload_limit: int
    default_accept: str
    is_batch: bool
    batch: BatchParameters
    limits: RequestLimits
    messages_api: bool | None
    api_key: str | None
    cors_origins: list[str]
    compute_type: str | None
    auto_truncate: bool
    num_frontends: int
    tool_call_parser: str | None
    system_prompt: str | None
    deadlines: Deadlines
    num_batch_slots: int
    has_ui: bool

    @classmethod
    def from_settings(cls, settings: Settings) -> "Options":
        """Pick them from all settings."""
        return cls(
            payload_limit=settings.server.body_limit,
            default_accept=settings.handlers.default_accept,
            is_batch=settings.server.is_batch,
            batch=BatchParameters.from_settings(
                settings.sagemaker,
                settings.server.body_limit,
                settings.engine.max_concurrent_requests,
            ),
            limits=RequestLimits.from_settings(settings.engine, settings.requests),
            messages_api=settings.server.messages_api_enabled,
            api_key=settings.server.api_key,
            cors_origins=[
                origin.strip() for origin in settings.server.cors_allow_origin.split(",")
            ],
            compute_type=settings.server.compute_type,
            auto_truncate=settings.embedding.auto_truncate,
            num_frontends=settings.server.num_frontends,
            tool_call_parser=settings.requests.tool_call_parser,
            system_prompt=settings.requests.system_prompt,
            num_batch_slots=settings.num_batch_slots,
            has_ui=settings.server.has_ui,
            deadlines=Deadlines(settings.server.deadline_s, settings.server.stream_deadline_s),
        )
