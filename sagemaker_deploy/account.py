"""Reads the state of the AWS account that the planners need; all calls are read-only.

A call without permission yields None (unknown), never a guess.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import AccessDenied, AwsError, NotFound
from sagemaker_deploy.facts.image import image_facts
from sagemaker_deploy.facts.model_size import HUB, model_size
from sagemaker_deploy.facts.quotas import endpoint_quotas
from sagemaker_deploy.plan import monitoring
from sagemaker_deploy.plan.capacity.scaling import Registered, Target, from_zero_name, target_of
from sagemaker_deploy.plan.delete import Deployed
from sagemaker_deploy.plan.deploy import RESPONSES, AccountState, folder_stamp
from sagemaker_deploy.plan.monitoring import Watched
from sagemaker_deploy.plan.requests import TAG, artifact_prefix, component_name

HASHED = "{name}-[0-9a-f]{{8}}"
T = TypeVar("T")


def gather(aws: Aws, config: Config, hub: str = HUB) -> AccountState:
    """Collect the account state that planning a deployment needs."""
    endpoint = describe_endpoint(aws, config.name)
    deployed = find_deployed(aws, config.name)
    component = component_name(config)
    data = config.model.data
    image = image_facts(aws, config.image)
    is_folder = bool(data and not data.startswith("s3://"))
    return AccountState(
        region=aws.region,
        account=_or_none(lambda: aws.account) or "<account>",
        endpoint_status=str(endpoint["EndpointStatus"]) if endpoint else None,
        endpoint_config=str(endpoint["EndpointConfigName"]) if endpoint else None,
        variants=variant_names(endpoint) if endpoint else frozenset(),
        models=frozenset(deployed.models),
        configs=frozenset(deployed.configs),
        component=describe_component(aws, component) if component in deployed.components else None,
        scaling=registered(aws, target_of(config)) if config.scaling else Registered(),
        watched=watched(aws, config.name),
        quotas=endpoint_quotas(aws, config.all_instance_types),
        image_exists=image.exists,
        image_media_type=image.media_type,
        image_bytes=image.size_bytes,
        image_architectures=image.architectures,
        role_exists=_or_none(lambda: _role_exists(aws, config.role)),
        data_stamp=folder_stamp(Path(data), config.model.code) if data and is_folder else "",
        size=model_size(aws, config, hub),
    )


def without_account(config: Config, hub: str = HUB) -> AccountState:
    """Return the state of an account of which nothing is known, without a call of AWS."""
    data = config.model.data
    is_folder = bool(data and not data.startswith("s3://"))
    return AccountState(
        region=config.region or "<region>",
        account=config.role.split(":")[4],
        data_stamp=folder_stamp(Path(data), config.model.code) if data and is_folder else "",
        size=model_size(None, config, hub),
    )


def describe_endpoint(aws: Aws, name: str) -> dict[str, Any] | None:
    """Return the endpoint's description, or None if it does not exist."""
    try:
        return aws.call("sagemaker", "describe_endpoint", EndpointName=name)
    except NotFound:
        return None


def find_deployed(aws: Aws, name: str) -> Deployed:
    """Find the existing resources of the deployment of this name, but for its archives."""
    endpoint = describe_endpoint(aws, name)
    names = tuple(_component_names(aws, name)) if endpoint else ()
    monitored = watched(aws, name)
    alarms = [*(_describe_alarms(aws, [from_zero_name(name)]) or ()), *monitored.alarms.values()]
    return Deployed(
        name,
        endpoint=endpoint is not None,
        components=names,
        configs=tuple(_owned(aws, name, "EndpointConfig")),
        models=tuple(_owned(aws, name, "Model")),
        targets=tuple(_targets(aws, name, names)),
        alarms=tuple(each["AlarmName"] for each in alarms if monitoring.is_own(each, name)),
        dashboards=(monitoring.dashboard_name(name),) if monitored.dashboard else (),
    )


def find_deletable(aws: Aws, name: str, bucket: str | None) -> Deployed:
    """Find all of a deployment, adapters before the components that have loaded them.

    `bucket` has the uploaded archives; None: that to which models and components refer.
    """
    deployed = find_deployed(aws, name)
    described = [describe_component(aws, component) for component in deployed.components]
    described.sort(key=lambda record: base_of(record) is None)
    bucket = bucket or _bucket_of(aws, deployed, described)
    return replace(
        deployed,
        components=tuple(record["InferenceComponentName"] for record in described),
        objects=tuple(_objects(aws, name, bucket)) if bucket else (),
    )


def components(aws: Aws, endpoint: str) -> list[dict[str, Any]]:
    """Describe every inference component of an endpoint, adapters included."""
    return [describe_component(aws, name) for name in _component_names(aws, endpoint)]


def describe_component(aws: Aws, name: str) -> dict[str, Any]:
    """Describe an inference component."""
    return aws.call("sagemaker", "describe_inference_component", InferenceComponentName=name)


def base_of(component: Mapping[str, Any]) -> str | None:
    """Return the component that has loaded an adapter; None if it is no adapter."""
    base = component.get("Specification", {}).get("BaseInferenceComponentName")
    return str(base) if base else None


def variant_names(endpoint: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of a described endpoint's production variants."""
    return frozenset(each["VariantName"] for each in endpoint.get("ProductionVariants", ()))


def config_tags(aws: Aws, name: str) -> dict[str, dict[str, str]]:
    """Return the tags of each of the deployment's endpoint configs, by its name."""
    tags = {}
    for config_name in _owned(aws, name, "EndpointConfig"):
        arn = config_arn(aws, config_name)
        listed = aws.call("sagemaker", "list_tags", ResourceArn=arn)["Tags"]
        tags[config_name] = {tag["Key"]: tag["Value"] for tag in listed}
    return tags


def config_arn(aws: Aws, config_name: str) -> str:
    """Return the ARN of an endpoint config."""
    described = aws.call("sagemaker", "describe_endpoint_config", EndpointConfigName=config_name)
    return str(described["EndpointConfigArn"])


def _bucket_of(aws: Aws, deployed: Deployed, described: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the bucket to which this deployment's archives were uploaded."""
    models = (aws.call("sagemaker", "describe_model", ModelName=name) for name in deployed.models)
    urls = [record.get("PrimaryContainer", {}).get("ModelDataUrl", "") for record in models]
    specifications = (record.get("Specification", {}) for record in described)
    urls += [each.get("Container", {}).get("ArtifactUrl", "") for each in specifications]
    upload = re.compile(rf"s3://([^/]+)/{re.escape(artifact_prefix(deployed.name))}")
    matches = (upload.match(url or "") for url in urls)
    return next((match[1] for match in matches if match), None)


def registered(aws: Aws, target: Target) -> Registered:
    """Read what Application Auto Scaling and CloudWatch have for a target."""
    where = target.where()
    resource, namespace = where["ResourceId"], where["ServiceNamespace"]
    pages = aws.pages(
        "application-autoscaling",
        "describe_scalable_targets",
        ServiceNamespace=namespace,
        ResourceIds=[resource],
    )
    try:
        targets = [record for page in pages for record in page["ScalableTargets"]]
        pages = aws.pages(
            "application-autoscaling",
            "describe_scaling_policies",
            ServiceNamespace=namespace,
            ResourceId=resource,
        )
        policies = [record for page in pages for record in page["ScalingPolicies"]]
        pages = aws.pages(
            "application-autoscaling",
            "describe_scheduled_actions",
            ServiceNamespace=namespace,
            ResourceId=resource,
        )
        actions = [record for page in pages for record in page["ScheduledActions"]]
    except AwsError:  # no permission, or a dimension that an imitation of AWS does not know
        return Registered(is_known=False)
    if not targets:
        return Registered()  # policies of a target that is gone have no effect
    alarms = _describe_alarms(aws, [from_zero_name(target.endpoint)])
    return Registered(
        targets[0],
        {policy["PolicyName"]: policy for policy in policies},
        alarms[0] if alarms else None,
        {action["ScheduledActionName"]: action for action in actions},
        is_known=alarms is not None,
    )


def watched(aws: Aws, name: str) -> Watched:
    """Read a deployment's own alarms and dashboard."""
    unknown: set[str] = set()
    alarms = _describe_alarms(aws, monitoring.own_alarm_names(name))
    if alarms is None:
        unknown.update(monitoring.own_alarm_names(name))
    shown = monitoring.dashboard_name(name)
    body = None
    try:
        body = aws.call("cloudwatch", "get_dashboard", DashboardName=shown)["DashboardBody"]
    except NotFound:
        pass
    except AwsError:
        unknown.add(shown)
    by_name = {alarm["AlarmName"]: alarm for alarm in alarms or ()}
    return Watched(by_name, body, frozenset(unknown))


def _component_names(aws: Aws, name: str) -> Iterator[str]:
    for page in aws.pages("sagemaker", "list_inference_components", EndpointNameEquals=name):
        for component in page["InferenceComponents"]:
            yield component["InferenceComponentName"]


def _owned(aws: Aws, name: str, noun: str) -> Iterator[str]:
    """Yield models or endpoint configs that match the deployment's name and carry its tag."""
    operation = {"Model": "list_models", "EndpointConfig": "list_endpoint_configs"}[noun]
    pattern = re.compile(HASHED.format(name=re.escape(name)))
    for page in aws.pages("sagemaker", operation, NameContains=name):
        for record in page[f"{noun}s"]:
            resource_name, arn = record[f"{noun}Name"], record[f"{noun}Arn"]
            if pattern.fullmatch(resource_name) and _is_deployed(aws, arn, name):
                yield resource_name


def _is_deployed(aws: Aws, arn: str, name: str) -> bool:
    tags = aws.call("sagemaker", "list_tags", ResourceArn=arn)["Tags"]
    return {"Key": TAG, "Value": name} in tags


def _targets(aws: Aws, name: str, components: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    resources = {f"inference-component/{component}" for component in components}
    pages = aws.pages(
        "application-autoscaling", "describe_scalable_targets", ServiceNamespace="sagemaker"
    )
    try:
        for page in pages:
            for target in page["ScalableTargets"]:
                resource = target["ResourceId"]
                if resource in resources or resource.startswith(f"endpoint/{name}/variant/"):
                    yield target["ResourceId"], target["ScalableDimension"]
    except AccessDenied:
        return


def _describe_alarms(aws: Aws, names: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the alarms of these names, with their tags if they can be read; None: unknown."""
    answer = _or_none(lambda: aws.call("cloudwatch", "describe_alarms", AlarmNames=[*names]))
    if answer is None:
        return None
    return [alarm | _alarm_tags(aws, alarm["AlarmArn"]) for alarm in answer["MetricAlarms"]]


def _alarm_tags(aws: Aws, arn: str) -> dict[str, Any]:
    answer = _or_none(lambda: aws.call("cloudwatch", "list_tags_for_resource", ResourceARN=arn))
    return {} if answer is None else {"Tags": answer["Tags"]}


def _objects(aws: Aws, name: str, bucket: str) -> Iterator[tuple[str, str]]:
    """Yield what was uploaded; the answers of batch jobs stay."""
    prefix = artifact_prefix(name)
    for page in aws.pages("s3", "list_objects_v2", Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            if RESPONSES not in item["Key"]:
                yield bucket, item["Key"]


def _role_exists(aws: Aws, role: str) -> bool:
    try:
        aws.call("iam", "get_role", RoleName=role.rpartition("/")[2])
    except NotFound:
        return False
    return True


def _or_none(question: Callable[[], T]) -> T | None:
    """Return the answer, or None if access is denied or the service does not have it."""
    try:
        return question()
    except (AccessDenied, AwsError, NotFound):
        return None
