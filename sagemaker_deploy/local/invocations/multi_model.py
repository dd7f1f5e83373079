"""The platform's side of a multi-model endpoint: loads and unloads models by name.

Contract: "Build your own container for multi-model endpoints" of the SageMaker guide. A model is
fetched and loaded on its first request; on 507 the least recently used model is unloaded.
"""

import hashlib
import json
import threading
from collections import OrderedDict

from sagemaker_deploy.errors import DeployError
from sagemaker_deploy.local import refusals
from sagemaker_deploy.local.containers.exchange import Exchange
from sagemaker_deploy.local.containers.fleet import Fleet
from sagemaker_deploy.local.containers.process import Container
from sagemaker_deploy.local.containers.storage import join

LOAD_TIMEOUT_S = 480.0
JSON = {"Content-Type": "application/json"}


class Models:
    """The loaded models of each container, changed under one lock."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._loaded: dict[Container, OrderedDict[str, None]] = {}
        self._lock = threading.Lock()

    def path(self, container: Container, prefix: str, name: str) -> str:
        """Load a model if necessary and return its invocation's target. Raises Refusal."""
        model_id = hashlib.sha256(name.encode()).hexdigest()[:32]
        with self._lock:
            loaded = self._loaded.setdefault(container, OrderedDict())
            if model_id not in loaded:
                self._load(container, join(prefix, name), model_id, loaded)
            loaded[model_id] = None
            loaded.move_to_end(model_id)
        return f"/models/{model_id}/invoke"

    def _load(
        self, container: Container, url: str, model_id: str, loaded: "OrderedDict[str, None]"
    ) -> None:
        try:
            inside = self._fleet.add_model(container, url, model_id)
        except DeployError as error:
            raise refusals.validation(f"Failed to download model data ({error.message})") from error
        body = json.dumps({"model_name": model_id, "url": inside}).encode()
        while True:
            status, text = _call(container, "POST", "/models", body)
            if status != 507 or not loaded:
                break
            oldest, _ = loaded.popitem(last=False)
            _call(container, "DELETE", f"/models/{oldest}", None)
            self._fleet.drop_model(container, oldest)
        if status not in (200, 409):
            self._fleet.drop_model(container, model_id)
            raise refusals.Refusal(
                424,
                "ModelError",
                f"Failed to load model: the container answered {status} to POST /models: {text}",
                OriginalStatusCode=status,
                OriginalMessage=text,
            )


def _call(container: Container, method: str, path: str, body: bytes | None) -> tuple[int, str]:
    with Exchange(
        container.port, path, JSON, body, timeout_s=LOAD_TIMEOUT_S, method=method
    ) as exchange:
        return exchange.status, exchange.read().decode(errors="replace")
