"""Plans smaller changes to a deployment: its size, its adapters, a batch job. Pure."""

from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan import requests
from sagemaker_deploy.plan.requests import TAG, VARIANT
from sagemaker_deploy.plan.steps import Step, Undo, Wait

TRANSFORM_TIMEOUT_S = 24 * 3600


def instances(endpoint: str, count: int, variant: str = VARIANT) -> Step:
    """Plan another number of instances for a variant."""
    desired = {"VariantName": variant, "DesiredInstanceCount": count}
    wait = Wait(
        "describe_endpoint",
        {"EndpointName": endpoint},
        "EndpointStatus",
        "InService",
        ("Failed",),
    )
    return Step(
        f"scale to {count} instances",
        f"variant {variant} of {endpoint}",
        "sagemaker",
        "update_endpoint_weights_and_capacities",
        {"EndpointName": endpoint, "DesiredWeightsAndCapacities": [desired]},
        wait=wait,
    )


def copies(component: str, count: int) -> Step:
    """Plan another number of copies of a component; zero frees its instance."""
    where = {"InferenceComponentName": component}
    return Step(
        f"scale to {count} copies",
        f"inference component {component}",
        "sagemaker",
        "update_inference_component_runtime_config",
        {**where, "DesiredRuntimeConfig": {"CopyCount": count}},
        wait=_component_wait(where),
    )


def add_adapter(endpoint: str, base: str, name: str, url: str) -> Step:
    """Plan a LoRA adapter as a component in another component's container."""
    where = {"InferenceComponentName": name}
    params = {
        **where,
        "EndpointName": endpoint,
        "Specification": {
            "BaseInferenceComponentName": base,
            "Container": {"ArtifactUrl": url},
        },
        "Tags": [{"Key": TAG, "Value": endpoint}],
    }
    return Step(
        f"load the adapter over {base}",
        f"adapter {name}",
        "sagemaker",
        "create_inference_component",
        params,
        undo=Undo("delete_inference_component", where),
        wait=_component_wait(where),
    )


def remove_adapter(name: str) -> Step:
    """Plan the unloading of an adapter."""
    where = {"InferenceComponentName": name}
    return Step(
        "unload the adapter",
        f"adapter {name}",
        "sagemaker",
        "delete_inference_component",
        where,
        wait=Wait("describe_inference_component", where, "InferenceComponentStatus", "", ()),
    )


def transform(
    config: Config, job: str, model: str, source: str, output: str, wishes: dict[str, Any]
) -> Step:
    """Plan a transform job over JSON Lines: one response for each line, in order."""
    params = {
        "TransformJobName": job,
        "ModelName": model,
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": source}},
            "ContentType": "application/jsonlines",
            "SplitType": "Line",
        },
        "TransformOutput": {
            "S3OutputPath": output,
            "Accept": "application/jsonlines",
            "AssembleWith": "Line",
        },
        "TransformResources": {
            "InstanceType": config.all_instance_types[0],
            "InstanceCount": config.instance_count,
        },
        "ModelClientConfig": {"InvocationsTimeoutInSeconds": 3600, "InvocationsMaxRetries": 1},
        "Tags": requests.tags(config),
        **wishes,
    }
    where = {"TransformJobName": job}
    wait = Wait(
        "describe_transform_job",
        where,
        "TransformJobStatus",
        "Completed",
        ("Failed", "Stopped"),
        timeout_s=TRANSFORM_TIMEOUT_S,
    )
    return Step(
        f"answer {source}",
        f"transform job {job}",
        "sagemaker",
        "create_transform_job",
        params,
        undo=Undo("stop_transform_job", where),
        wait=wait,
    )


def _component_wait(where: dict[str, str]) -> Wait:
    return Wait(
        "describe_inference_component", where, "InferenceComponentStatus", "InService", ("Failed",)
    )
