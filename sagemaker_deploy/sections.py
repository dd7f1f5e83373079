"""The sections of a configuration: each a frozen model that is strict about its keys."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*$"
ROLE = r"^arn:aws[a-z\-]*:iam::\d{12}:role/.+$"
TOPIC = r"^arn:aws[a-z\-]*:sns:[a-z0-9\-]*:\d{12}:[a-zA-Z0-9_.\-]+$"
SCHEDULE = r"^(cron|at|rate)\(.+\)$"
S3 = r"^s3://[^/]+/.+$"

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


class ScaleIn(Section):
    """How an endpoint of components gives instances back, down to none."""

    strategy: Literal["idle_release", "consolidation"] = "idle_release"
    max_step: Annotated[int, Field(ge=1, le=100)] | None = None
    cooldown_minutes: Annotated[int, Field(ge=5, le=1440)] | None = None


class Component(Section):
    """The model as an inference component, which can share its instances with others."""

    copies: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[int, Field(ge=1)] | None = None
    cpus: Annotated[float, Field(gt=0)] | None = None
    memory_mb: Annotated[int, Field(ge=128)] = 1024
    cache_model_data: bool = True
    scale_in: ScaleIn | None = None


class Schedule(Section):
    """Limits of scaling from one moment on: `at` as in cron(0 7 ? * MON-FRI *)."""

    at: Annotated[str, Field(pattern=SCHEDULE)]
    min: Annotated[int, Field(ge=0)] | None = None
    max: Annotated[int, Field(ge=0)] | None = None


class Scaling(Section):
    """Application Auto Scaling: a target of concurrent requests for one model copy."""

    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)]
    target_concurrency: Annotated[float, Field(gt=0)]
    scale_in_cooldown_s: Annotated[int, Field(ge=0)] = 300
    scale_out_cooldown_s: Annotated[int, Field(ge=0)] = 30
    schedules: dict[Name, Schedule] = {}
    timezone: str | None = None

    @property
    def least(self) -> int:
        """The fewest copies or instances at any time, by the schedules too."""
        scheduled = [each.min for each in self.schedules.values() if each.min is not None]
        return min([self.min, *scheduled])

    @property
    def most(self) -> int:
        """The most copies or instances at any time, by the schedules too."""
        return max([self.max, *(each.max or 0 for each in self.schedules.values())])


class Changes(Section):
    """Another variant: as the deployment is, but for these. Its model is of the Hub or on S3."""

    image: str | None = None
    model: Model | None = None
    env: dict[str, str] = {}
    instance_type: str | None = None
    instance_count: Annotated[int, Field(ge=1)] = 1


class Variant(Changes):
    """A variant that gets its share of the traffic, by its weight beside the others'."""

    weight: Annotated[float, Field(ge=0)] = 1.0


class Shadow(Changes):
    """A variant that gets copies of requests, and whose answers are only captured."""

    percent: Annotated[float, Field(gt=0, le=100)] = 100


class Metrics(Section):
    """Finer metrics of SageMaker, the container's Prometheus metrics, and those of tokens."""

    enhanced: bool = False
    detailed: bool = False
    every_s: Literal[10, 30, 60, 120, 180, 240, 300] = 60
    tokens: bool = False

    @property
    def are_sagemakers(self) -> bool:
        """Whether SageMaker has to publish more than it does by itself."""
        return self.enhanced or self.detailed or self.every_s != 60


class Monitoring(Section):
    """CloudWatch alarms, which notify a topic and roll updates back, and a dashboard."""

    topic: Annotated[str, Field(pattern=TOPIC)] | None = None
    errors_percent: Annotated[float, Field(gt=0, le=100)] | None = 5
    latency_s: Annotated[float, Field(gt=0)] | None = None
    rollback: bool = True
    dashboard: bool = True


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
