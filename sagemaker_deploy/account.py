"""Reads the state of the AWS account that the planners need; all calls are read-only.

A call without permission yields None (unknown), never a guess.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import AccessDenied, AwsError, NotFound
from sagemaker_deploy.facts.image import describe_image
from sagemaker_deploy.facts.model_size import HUB, model_size
from sagemaker_deploy.facts.quotas import endpoint_quotas
from sagemaker_deploy.plan import monitoring
from sagemaker_deploy.plan.capacity.scaling import Registered, Target, from_zero_name, target_of
from sagemaker_deploy.plan.delete import Deployed
from sagemaker_deploy.plan.deploy import RESPONSES, AccountState, folder_stamp
from sagemaker_deploy.plan.monitoring import Watched
from sagemaker_deploy.plan.requests import TAG, artifact_prefix, component_name

# By the field of the answer.
SCALING_OPERATIONS = {
    "ScalableTargets": "describe_scalable_targets",
    "ScalingPolicies": "describe_scaling_policies",
    "ScheduledActions": "describe_scheduled_actions",
}
HASHED = "{name}-[0-9a-f]{{8}}"
T = TypeVar("T")


def gather(aws: Aws, config: Config, hub: str = HUB) -> AccountState:
    """Collect the account state that planning a deployment needs."""
    endpoint = describe_endpoint(aws, config.name)
    monitored = watched(aws, config.name)
    deployed = _deployed(aws, config.name, endpoint, monitored)
    component = component_name(config)
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
        watched=monitored,
        quotas=endpoint_quotas(aws, config.all_instance_types),
        image=describe_image(aws, config.image),
        role_exists=_or_none(lambda: _role_exists(aws, config.role)),
        data_stamp=_data_stamp(config),
        size=model_size(aws, config, hub),
    )


def without_account(config: Config, hub: str = HUB) -> AccountState:
    """Return the state of an account of which nothing is known, without a call of AWS."""
    return AccountState(
        region=config.region or "<region>",
        account=config.role.split(":")[4],
        data_stamp=_data_stamp(config),
        size=model_size(None, config, hub),
    )


def _data_stamp(config: Config) -> str:
    data = config.model.data
    if not data or data.startswith("s3://"):
        return ""
    return folder_stamp(Path(data), config.model.code)


def describe_endpoint(aws: Aws, name: str) -> dict[str, Any] | None:
    """Return the endpoint's description, or None if it does not exist."""
    try:
        return aws.call("sagemaker", "describe_endpoint", EndpointName=name)
    except NotFound:
        return None


def find_deployed(aws: Aws, name: str) -> Deployed:
    """Find the existing resources of the deployment of this name, but for its archives."""
    return _deployed(aws, name, describe_endpoint(aws, name), watched(aws, name))


def _deployed(
    aws: Aws, name: str, endpoint: Mapping[str, Any] | None, monitored: Watched
) -> Deployed:
    names = tuple(component_names(aws, name)) if endpoint else ()
    targets = scalable_targets(aws, name, names)
    alarms = [*(_describe_alarms(aws, [from_zero_name(name)]) or ()), *monitored.alarms.values()]
    return Deployed(
        name,
        endpoint=endpoint is not None,
        components=names,
        configs=tuple(_owned(aws, name, "EndpointConfig")),
        models=tuple(_owned(aws, name, "Model")),
        targets=tuple((each["ResourceId"], each["ScalableDimension"]) for each in targets),
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
    return [describe_component(aws, name) for name in component_names(aws, endpoint)]


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


def tags_of(aws: Aws, arn: str) -> dict[str, str]:
    """Return the tags of a resource of SageMaker."""
    tags = aws.call("sagemaker", "list_tags", ResourceArn=arn)["Tags"]
    return {tag["Key"]: tag["Value"] for tag in tags}


def config_tags(aws: Aws, name: str) -> dict[str, dict[str, str]]:
    """Return the tags of each of the deployment's endpoint configs, by its name."""
    return _owned(aws, name, "EndpointConfig")


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
    namespace, resource = where["ServiceNamespace"], where["ResourceId"]
    of_resource = {"ServiceNamespace": namespace, "ResourceId": resource}
    try:
        targets = _scaling_records(
            aws, "ScalableTargets", ServiceNamespace=namespace, ResourceIds=[resource]
        )
        policies = _scaling_records(aws, "ScalingPolicies", **of_resource)
        actions = _scaling_records(aws, "ScheduledActions", **of_resource)
    except AwsError:  # no permission, or a dimension that an imitation of AWS does not know
        return Registered(is_known=False)
    if not targets:
        return Registered()  # policies of a deleted target have no effect
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


def component_names(aws: Aws, name: str) -> Iterator[str]:
    """Yield the names of an endpoint's inference components, adapters included."""
    for page in aws.pages("sagemaker", "list_inference_components", EndpointNameEquals=name):
        for component in page["InferenceComponents"]:
            yield component["InferenceComponentName"]


def _owned(aws: Aws, name: str, noun: str) -> dict[str, dict[str, str]]:
    """Return the tags, by name, of the deployment's models or endpoint configs."""
    operation = {"Model": "list_models", "EndpointConfig": "list_endpoint_configs"}[noun]
    pattern = re.compile(HASHED.format(name=re.escape(name)))
    arns = {
        record[f"{noun}Name"]: record[f"{noun}Arn"]
        for page in aws.pages("sagemaker", operation, NameContains=name)
        for record in page[f"{noun}s"]
        if pattern.fullmatch(record[f"{noun}Name"])
    }
    tags = {resource: tags_of(aws, arn) for resource, arn in arns.items()}
    return {resource: own for resource, own in tags.items() if own.get(TAG) == name}


def scalable_targets(aws: Aws, endpoint: str, components: Iterable[str]) -> list[dict[str, Any]]:
    """Describe the scalable targets of an endpoint's variants and components; none if denied."""
    resources = {f"inference-component/{component}" for component in components}
    try:
        targets = _scaling_records(aws, "ScalableTargets", ServiceNamespace="sagemaker")
    except AccessDenied:
        return []
    return [
        target
        for target in targets
        if target["ResourceId"] in resources
        or target["ResourceId"].startswith(f"endpoint/{endpoint}/variant/")
    ]


def _scaling_records(aws: Aws, noun: str, **params: Any) -> list[dict[str, Any]]:
    operation = SCALING_OPERATIONS[noun]
    pages = aws.pages("application-autoscaling", operation, **params)
    return [record for page in pages for record in page[noun]]


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
