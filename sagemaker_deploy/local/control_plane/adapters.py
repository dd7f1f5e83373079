"""Adapter components: components whose artifact another component's container loads.

Contract: `POST /adapters` {"name", "src", "preload", "pin"} and `DELETE /adapters/{name}`, as in
AWS's model-hosting-container-standards; requests carry X-Amzn-SageMaker-Adapter-Identifier.
"""

import json
import urllib.parse

from sagemaker_deploy.errors import EndpointFailed
from sagemaker_deploy.local.containers.exchange import Exchange, Failure
from sagemaker_deploy.local.containers.fleet import Fleet
from sagemaker_deploy.local.containers.process import Container

LOAD_TIMEOUT_S = 480.0
IDENTIFIER = "X-Amzn-SageMaker-Adapter-Identifier"
ALIAS = "X-Amzn-SageMaker-Adapter-Alias"


def load(fleet: Fleet, container: Container, name: str, url: str) -> None:
    """Fetch an adapter and load it into the container. Raises EndpointFailed or DeployError."""
    source = fleet.add_adapter(container, url, name)
    body = {"name": name, "src": source, "preload": True, "pin": False}
    status, text = _call(container, "POST", "/adapters", name, json.dumps(body).encode())
    if status != 200:
        raise EndpointFailed(
            f"The container answered {status} to POST /adapters for {name}: {text[:500]}"
        )


def unload(container: Container, name: str) -> None:
    """Unload an adapter from the container."""
    _call(container, "DELETE", f"/adapters/{urllib.parse.quote(name)}", name, None)


def _call(
    container: Container, method: str, path: str, alias: str, body: bytes | None
) -> tuple[int, str]:
    headers = {"Content-Type": "application/json", ALIAS: alias}
    try:
        with Exchange(
            container.port, path, headers, body, timeout_s=LOAD_TIMEOUT_S, method=method
        ) as exchange:
            return exchange.status, exchange.read().decode(errors="replace")
    except (TimeoutError, *Failure) as error:
        raise EndpointFailed(f"The container did not answer {method} {path}: {error}") from error
