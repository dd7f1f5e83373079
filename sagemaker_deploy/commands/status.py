"""`status`: the state of a deployment."""

from typing import Any

import click

from sagemaker_deploy import account
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import print_json, print_table
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import NotFound


@click.command()
@options.target_options
@options.as_json
def status(name: str, aws: Aws, config: Config | None, as_json: bool) -> None:
    """Show the endpoint, its variants, components and scaling, and the reason of a failure."""
    endpoint = account.describe_endpoint(aws, name)
    if endpoint is None:
        raise NotFound(f"endpoint {name} does not exist in {aws.region}", hint="use `deploy`")
    components = account.components(aws, name)
    names = [each["InferenceComponentName"] for each in components]
    targets = [
        (each["ResourceId"], each["ScalableDimension"])
        for each in account.scalable_targets(aws, name, names)
    ]
    if as_json:
        endpoint.pop("ResponseMetadata", None)
        print_json({"endpoint": endpoint, "components": components, "scaling": targets})
        return
    click.echo(f"{name}: {endpoint['EndpointStatus']}, config {endpoint['EndpointConfigName']}")
    if reason := endpoint.get("FailureReason"):
        click.secho(f"  reason: {reason}", fg="red")
    variants = endpoint.get("ProductionVariants", [])
    print_table("Variants", ("Variant", "Instances", "Weight"), map(_variant, variants))
    if components:
        print_table(
            "Components", ("Component", "Status", "Copies", "Reason"), map(_component, components)
        )
    for resource, dimension in targets:
        click.echo(f"  scales: {resource} ({dimension})")


def _variant(variant: dict[str, Any]) -> tuple[object, ...]:
    if serverless := variant.get("CurrentServerlessConfig"):
        count = f"serverless, {serverless['MemorySizeInMB']} MB"
    else:
        current, desired = variant.get("CurrentInstanceCount"), variant.get("DesiredInstanceCount")
        count = f"{current} of {desired}"
    return variant["VariantName"], count, variant.get("CurrentWeight", "")


def _component(component: dict[str, Any]) -> tuple[object, ...]:
    runtime = component.get("RuntimeConfig", {})
    copies = f"{runtime.get('CurrentCopyCount')} of {runtime.get('DesiredCopyCount')}"
    reason = component.get("FailureReason", "")
    return (
        component["InferenceComponentName"],
        component["InferenceComponentStatus"],
        copies,
        reason,
    )
