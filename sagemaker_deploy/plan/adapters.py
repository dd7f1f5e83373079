"""Plans the life of LoRA adapters: components that another component's container loads. Pure."""

from collections.abc import Mapping
from typing import Any

from sagemaker_deploy.plan import waits
from sagemaker_deploy.plan.requests import own_tag
from sagemaker_deploy.plan.steps import Step, Undo

# An adapter's tag: the archive that it had before its last update.
PREVIOUS = "sagemaker-deploy:previous"
MAX_TAG_LENGTH = 256


def prefixed(endpoint: str, adapter: str) -> str:
    """Return an adapter's name that no other endpoint's adapter has."""
    return f"{endpoint}-{adapter}"


def archive_of(described: Mapping[str, Any]) -> str:
    """Return the URL of the archive from which an adapter was loaded."""
    return str(described["Specification"].get("Container", {}).get("ArtifactUrl", ""))


def add(endpoint: str, base: str, name: str, url: str) -> Step:
    """Plan a LoRA adapter as a component in another component's container."""
    where = {"InferenceComponentName": name}
    params = {
        **where,
        "EndpointName": endpoint,
        "Specification": {
            "BaseInferenceComponentName": base,
            "Container": {"ArtifactUrl": url},
        },
        "Tags": [own_tag(endpoint)],
    }
    return Step(
        f"load the adapter over {base}",
        f"adapter {name}",
        "sagemaker",
        "create_inference_component",
        params,
        undo=Undo("delete_inference_component", where),
        wait=waits.component_in_service(name),
    )


def update(endpoint: str, described: Mapping[str, Any], url: str) -> list[Step]:
    """Plan other weights for an adapter, and remember the archive that it has now."""
    name, before = str(described["InferenceComponentName"]), archive_of(described)
    where = {"InferenceComponentName": name}
    steps = [
        Step(
            f"load {url} in its place",
            f"adapter {name}",
            "sagemaker",
            "update_inference_component",
            where | _specification(described, url),
            undo=Undo("update_inference_component", where | _specification(described, before)),
            wait=waits.component_in_service(
                name, expects={"Specification.Container.ArtifactUrl": url}
            ),
            uses_earlier=True,
        )
    ]
    if len(before) <= MAX_TAG_LENGTH:
        tags = [own_tag(endpoint), {"Key": PREVIOUS, "Value": before}]
        params = {"ResourceArn": described["InferenceComponentArn"], "Tags": tags}
        steps.append(
            Step("remember the earlier archive", f"tag of {name}", "sagemaker", "add_tags", params)
        )
    return steps


def remove(name: str) -> Step:
    """Plan the unloading of an adapter."""
    return Step(
        "unload the adapter",
        f"adapter {name}",
        "sagemaker",
        "delete_inference_component",
        {"InferenceComponentName": name},
        wait=waits.component_deleted(name),
    )


def _specification(described: Mapping[str, Any], url: str) -> dict[str, Any]:
    base = described["Specification"]["BaseInferenceComponentName"]
    content = {"BaseInferenceComponentName": base, "Container": {"ArtifactUrl": url}}
    return {"Specification": content}
