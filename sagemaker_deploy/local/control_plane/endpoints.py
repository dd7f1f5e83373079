"""The live endpoints: the containers of their variants and inference components.

One process serves each variant and each component, for any number of instances or copies: there is
only this machine. Each endpoint starts in its own thread, as on the service.
"""

import logging
import random
import threading
from collections.abc import Mapping
from typing import Any

from sagemaker_deploy.errors import DeployError, EndpointFailed
from sagemaker_deploy.local.containers.fleet import Fleet, Spec
from sagemaker_deploy.local.control_plane import adapters
from sagemaker_deploy.local.control_plane.resources import (
    COMPONENT,
    CONFIG,
    ENDPOINT,
    MODEL,
    Record,
    Resources,
)
from sagemaker_deploy.local.control_plane.units import (
    LocalEndpoint,
    Target,
    Unit,
    container_definition,
)
from sagemaker_deploy.local.refusals import Refusal, no_endpoint, validation

log = logging.getLogger(__name__)

STARTUP_TIMEOUT_S = 480
SERVING = ("InService", "Updating")


class Endpoints:
    """All live endpoints. `resources` has the statuses of their records."""

    def __init__(self, resources: Resources, fleet: Fleet) -> None:
        self._resources = resources
        self._fleet = fleet
        self._live: dict[str, LocalEndpoint] = {}
        self._lock = threading.RLock()

    def create(self, name: str, config_name: str) -> None:
        """Start an endpoint in the background."""
        config = self._resources.get(CONFIG, config_name)
        with self._lock:
            endpoint = self._live[name] = LocalEndpoint(name, config)
        self._in_background(self._bring_up, endpoint)

    def update(self, name: str, config_name: str) -> None:
        """Update blue/green: stop the old containers only after the new ones are healthy."""
        config = self._resources.get(CONFIG, config_name)
        self._resources.change(ENDPOINT, name, EndpointStatus="Updating")
        self._in_background(self._replace, self._live[name], config)

    def delete(self, name: str) -> None:
        """Stop all its containers in the background."""
        with self._lock:
            endpoint = self._live.pop(name)
        units = [*endpoint.components.values(), *endpoint.variants.values()]
        self._in_background(self._stop_units, units)

    def live(self, name: str) -> LocalEndpoint:
        """Return a live endpoint. Raises Refusal."""
        with self._lock:
            if name not in self._live:
                raise no_endpoint(name)
            return self._live[name]

    def add_component(self, endpoint: str, unit: Unit) -> None:
        """Start a component in the background."""
        live = self.live(endpoint)
        live.components[unit.name] = unit
        self._in_background(self._start_component, unit)

    def replace_component(self, endpoint: str, unit: Unit) -> None:
        """Start a new version of a component; the old one serves until it is healthy.

        An adapter's new version takes the old one's place in its base's container.
        """
        swap = self._swap_adapter if unit.base else self._swap_component
        self._in_background(swap, self.live(endpoint), unit)

    def remove_component(self, endpoint: str, name: str) -> None:
        """Stop a component's container in the background."""
        components = self.live(endpoint).components
        unit = components.pop(name)
        if unit.base:
            base = components.get(unit.base)
            if base and base.container:
                adapters.unload(base.container, name)
            return
        self._in_background(self._stop_units, [unit])

    def replace_dead(self) -> None:
        """Start containers anew whose processes have ended, as the service replaces them.

        Call it now and then. One that does not come up makes its endpoint or component `Failed`.
        """
        with self._lock:
            dead = [
                (endpoint, unit)
                for endpoint in self._live.values()
                for unit in [*endpoint.variants.values(), *endpoint.components.values()]
                if unit.container and unit.container.has_died
            ]
        for endpoint, unit in dead:
            self._start_again(endpoint, unit)

    def _start_again(self, endpoint: LocalEndpoint, unit: Unit) -> None:
        log.warning("%s/%s: the container has ended; a new one starts", endpoint.name, unit.name)
        self._stop_units([unit])
        assert unit.spec is not None
        try:
            unit.container = self._fleet.start(unit.spec)
            for adapter in endpoint.components.values():
                if adapter.base == unit.name:
                    self._load_adapter(adapter)
        except (DeployError, Refusal) as error:
            if unit.name in endpoint.components:
                self._resources.set_status(COMPONENT, unit.name, "Failed", error)
            else:
                self._resources.set_status(ENDPOINT, endpoint.name, "Failed", error)
        with self._lock:
            is_deleted = self._live.get(endpoint.name) is not endpoint
        if is_deleted:
            self._stop_units([unit])

    def set_copies(self, endpoint: str, name: str, count: int) -> None:
        """Scale a component: zero copies stop the container; more than zero start it."""
        unit = self.live(endpoint).components[name]
        self._resources.change(COMPONENT, name, InferenceComponentStatus="Updating")
        if count == 0:
            self._in_background(self._stop_component, unit)
        else:
            self._in_background(self._start_component, unit)

    def route(self, name: str, variant: str | None = None, component: str | None = None) -> Target:
        """Choose the target of an invocation. Raises Refusal."""
        endpoint = self.live(name)
        if self._resources.get(ENDPOINT, name)["EndpointStatus"] not in SERVING:
            raise no_endpoint(name)
        unit = (
            self._component(endpoint, component)
            if component or endpoint.has_components
            else self._variant(endpoint, variant)
        )
        holder = endpoint.components[unit.base] if unit.base else unit
        if holder.container is None:
            raise validation("Inference Component has no capacity to process this request.")
        variant_name = str(unit.settings.get("VariantName", unit.name))
        return Target(name, variant_name, unit, holder.container, endpoint.config)

    def _variant(self, endpoint: LocalEndpoint, name: str | None) -> Unit:
        units = list(endpoint.variants.values())
        if name is None:
            weights = [float(unit.settings.get("InitialVariantWeight", 1.0)) for unit in units]
            return random.choices(units, weights if any(weights) else None)[0]
        if name not in endpoint.variants:
            raise validation(f"Variant {name} was not found for endpoint {endpoint.name}.")
        return endpoint.variants[name]

    def _component(self, endpoint: LocalEndpoint, name: str | None) -> Unit:
        if not endpoint.has_components:
            raise validation(f"Endpoint {endpoint.name} has no inference components.")
        if name is None:
            raise validation(
                "Inference Component Name header is required for endpoints to which you plan to "
                "deploy inference components."
            )
        if name not in endpoint.components:
            raise validation(f"Inference Component {name} of {endpoint.name} not found.")
        return endpoint.components[name]

    def _bring_up(self, endpoint: LocalEndpoint) -> None:
        try:
            variants = self._start_variants(endpoint.name, endpoint.config)
        except (DeployError, Refusal) as error:
            self._resources.set_status(ENDPOINT, endpoint.name, "Failed", error)
            return
        self._adopt(endpoint, endpoint.config, variants)

    def _replace(self, endpoint: LocalEndpoint, config: Record) -> None:
        try:
            variants = self._start_variants(endpoint.name, config)
        except (DeployError, Refusal) as error:
            # Roll back by doing nothing: the old containers are still serving.
            self._resources.set_status(ENDPOINT, endpoint.name, "InService", error)
            return
        old = list(endpoint.variants.values())
        self._adopt(endpoint, config, variants)
        self._stop_units(old)

    def _adopt(self, endpoint: LocalEndpoint, config: Record, variants: dict[str, Unit]) -> None:
        with self._lock:
            is_deleted = self._live.get(endpoint.name) is not endpoint
            if not is_deleted:
                endpoint.config, endpoint.variants = config, variants
        if is_deleted:
            self._stop_units(list(variants.values()))
            return
        name = str(config["EndpointConfigName"])
        self._resources.change(ENDPOINT, endpoint.name, EndpointConfigName=name)
        self._resources.set_status(ENDPOINT, endpoint.name, "InService")

    def _start_variants(self, endpoint: str, config: Record) -> dict[str, Unit]:
        started: dict[str, Unit] = {}
        try:
            for settings in config["ProductionVariants"]:
                unit = self._variant_unit(endpoint, settings)
                if unit.spec:
                    unit.container = self._fleet.start(unit.spec)
                started[unit.name] = unit
        except BaseException:
            self._stop_units(list(started.values()))
            raise
        return started

    def _variant_unit(self, endpoint: str, settings: Mapping[str, Any]) -> Unit:
        name = str(settings["VariantName"])
        if "ModelName" not in settings:
            return Unit(name, settings, None)
        definition = container_definition(self._resources.get(MODEL, str(settings["ModelName"])))
        timeout_s = settings.get("ContainerStartupHealthCheckTimeoutInSeconds", STARTUP_TIMEOUT_S)
        return Unit(name, settings, Spec(f"{endpoint}/{name}", definition, int(timeout_s)))

    def _start_component(self, unit: Unit) -> None:
        try:
            if unit.base:
                self._load_adapter(unit)
            elif unit.spec and unit.container is None:
                unit.container = self._fleet.start(unit.spec)
        except (DeployError, Refusal) as error:
            self._resources.set_status(COMPONENT, unit.name, "Failed", error)
            return
        self._resources.set_status(COMPONENT, unit.name, "InService")

    def _swap_component(self, endpoint: LocalEndpoint, unit: Unit) -> None:
        try:
            assert unit.spec is not None
            unit.container = self._fleet.start(unit.spec)
        except (DeployError, Refusal) as error:
            # Roll back by doing nothing: the old one is still serving.
            self._resources.set_status(COMPONENT, unit.name, "InService", error)
            return
        with self._lock:
            old, endpoint.components[unit.name] = endpoint.components[unit.name], unit
        self._resources.set_status(COMPONENT, unit.name, "InService")
        self._stop_units([old])

    def _swap_adapter(self, endpoint: LocalEndpoint, unit: Unit) -> None:
        old = endpoint.components[unit.name]
        base = endpoint.components[str(unit.base)]
        try:
            if base.container:
                adapters.unload(base.container, unit.name)
            self._load_adapter(unit)
        except (DeployError, Refusal) as error:
            self._roll_back_adapter(old, error)
            return
        endpoint.components[unit.name] = unit
        self._resources.set_status(COMPONENT, unit.name, "InService")

    def _roll_back_adapter(self, old: Unit, reason: Exception) -> None:
        before = old.settings["Specification"]
        self._resources.change(COMPONENT, old.name, Specification=before)
        try:
            self._load_adapter(old)
        except (DeployError, Refusal) as error:
            self._resources.set_status(COMPONENT, old.name, "Failed", error)
            return
        self._resources.set_status(COMPONENT, old.name, "InService", reason)

    def _load_adapter(self, unit: Unit) -> None:
        base = self.live(unit.settings["EndpointName"]).components[str(unit.base)]
        if base.container is None:
            raise EndpointFailed(f"The base component {unit.base} has no copies.")
        url = unit.settings["Specification"]["Container"]["ArtifactUrl"]
        adapters.load(self._fleet, base.container, unit.name, url)

    def _stop_component(self, unit: Unit) -> None:
        self._stop_units([unit])
        self._resources.set_status(COMPONENT, unit.name, "InService")

    def _stop_units(self, units: list[Unit]) -> None:
        for unit in units:
            container, unit.container = unit.container, None
            if container:
                self._fleet.stop(container)

    def _in_background(self, work: Any, *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()
