"""Estimates whether the model fits the instance, and shows the parts of the estimate.

Counts the weights once (they are sharded over the GPUs), the KV cache for `concurrency` sequences
of `max_total_tokens`, and reserves a fraction for activations and the framework.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan.instances import GIB, Instance

RESERVED_FRACTION = (
    0.15  # activations, CUDA context, fragmentation: a rule of thumb, not a measurement
)
HOURS = 24
CACHE_BYTES = 2  # bfloat16 or float16


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The size of a model; zero means unknown."""

    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    source: str = ""


UNKNOWN = ModelSize()


@dataclass(frozen=True, slots=True)
class Estimate:
    """The parts of the estimate, in bytes."""

    weights: int
    kv_cache: int
    available: int

    @property
    def needed(self) -> int:
        """Bytes of weights and KV cache together."""
        return self.weights + self.kv_cache

    @property
    def fits(self) -> bool:
        """Whether the weights and the whole KV cache fit."""
        return self.needed <= self.available

    @property
    def weights_fit(self) -> bool:
        """Whether at least the weights fit."""
        return self.weights <= self.available


def kv_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Compute the KV cache bytes of one token from a model's config.json; 0 if unknown."""
    config = config.get("text_config", config)
    layers, hidden = config.get("num_hidden_layers"), config.get("hidden_size")
    heads = config.get("num_attention_heads")
    if not layers or not heads or not (hidden or config.get("head_dim")):
        return 0
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    return int(2 * layers * kv_heads * head_dim * CACHE_BYTES)


def estimate(
    size: ModelSize, instance: Instance, concurrency: int, max_total_tokens: int
) -> Estimate:
    """Compare weights and KV cache with the instance's memory."""
    cache = size.kv_bytes_per_token * concurrency * max_total_tokens
    available = int(instance.model_memory_bytes * (1 - RESERVED_FRACTION))
    return Estimate(size.weights_bytes, cache, available)


def sentences(
    size: ModelSize, instance: Instance, concurrency: int, max_total_tokens: int
) -> tuple[list[str], list[str]]:
    """Describe the estimate as facts and warnings."""
    if not size.weights_bytes:
        return [], [
            f"{instance.name}: the model's size is not known, so the fit is not checked; "
            "set model.parameters_billion"
        ]
    result = estimate(size, instance, concurrency, max_total_tokens)
    fact = (
        f"memory: weights {_gib(result.weights)} ({size.source}), KV cache {_gib(result.kv_cache)} "
        f"for {concurrency} sequences of {max_total_tokens} tokens; {instance.shown} offers about "
        f"{_gib(result.available)}"
    )
    if not result.weights_fit:
        return [fact], [
            f"{instance.name} is too small: weights of {_gib(result.weights)} do not fit into "
            f"{_gib(result.available)}"
        ]
    if not result.fits:
        return [fact], [
            f"{instance.name}: the weights fit, the whole KV cache does not; fewer sequences will "
            "run at a time"
        ]
    return [fact], []


def cost(config: Config) -> str:
    """Describe the cost in the units that AWS bills."""
    if config.serverless:
        settings = config.serverless
        provisioned = settings.provisioned_concurrency
        idle = f"{provisioned} provisioned, billed always" if provisioned else "nothing while idle"
        return (
            f"cost: serverless, {settings.memory_mb} MB, up to {settings.max_concurrency} at a "
            f"time; billed by use; {idle}"
        )
    count = config.instance_count
    types = " or ".join(config.all_instance_types)
    span = ""
    if config.scaling:
        span = f"; scaling keeps it from {config.scaling.min} to {config.scaling.max} copies"
    return (
        f"cost: {count} x {types} = {count * HOURS} instance-hours a day while the endpoint "
        f"exists, used or not{span}"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
