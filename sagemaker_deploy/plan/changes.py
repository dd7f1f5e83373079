"""Plans smaller changes to a deployment: its size, a batch job. Pure."""

from collections.abc import Mapping
from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan import requests, waits
from sagemaker_deploy.plan.steps import Step, Undo, Wait
from sagemaker_deploy.plan.variants import VARIANT

TRANSFORM_TIMEOUT_S = 24 * 3600


def instances(endpoint: str, count: int, variant: str = VARIANT) -> Step:
    """Plan another number of instances for a variant."""
    desired = {"VariantName": variant, "DesiredInstanceCount": count}
    return Step(
        f"scale to {count} instances",
        f"variant {variant} of {endpoint}",
        "sagemaker",
        "update_endpoint_weights_and_capacities",
        {"EndpointName": endpoint, "DesiredWeightsAndCapacities": [desired]},
        wait=waits.endpoint_in_service(endpoint),
    )


def weights(endpoint: str, shares: Mapping[str, float]) -> Step:
    """Plan other shares of the traffic for an endpoint's variants."""
    desired = [{"VariantName": name, "DesiredWeight": share} for name, share in shares.items()]
    words = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    return Step(
        f"share traffic: {words}",
        f"variants of {endpoint}",
        "sagemaker",
        "update_endpoint_weights_and_capacities",
        {"EndpointName": endpoint, "DesiredWeightsAndCapacities": desired},
        wait=waits.endpoint_in_service(endpoint),
    )


def copies(component: str, count: int) -> Step:
    """Plan another number of copies of a component; zero frees its instance."""
    return Step(
        f"scale to {count} copies",
        f"inference component {component}",
        "sagemaker",
        "update_inference_component_runtime_config",
        {"InferenceComponentName": component, "DesiredRuntimeConfig": {"CopyCount": count}},
        wait=waits.component_in_service(component),
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
