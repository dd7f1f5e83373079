"""Builds IAM policies with the least permissions that a deployment needs. Pure; returns dicts."""

from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan.arns import ECR_HOST, Arns
from sagemaker_deploy.plan.requests import (
    COMPONENT_LOGS,
    ENDPOINT_LOGS,
    JOB_LOGS,
    TAG,
    artifact_prefix,
    component_name,
)
from sagemaker_deploy.plan.scaling import from_zero_name

Document = dict[str, Any]
HASH = "-????????"  # eight characters, as `requests.hashed` adds them
SCALING_SERVICE = "sagemaker.application-autoscaling.amazonaws.com"
PULL = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"]
INVOCATIONS = [
    "sagemaker:InvokeEndpoint",
    "sagemaker:InvokeEndpointWithResponseStream",
    "sagemaker:InvokeEndpointAsync",
]


def trust() -> Document:
    """Build the trust policy: SageMaker may assume the execution role."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sagemaker.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    return _document([statement])


def execution(config: Config, region: str, account: str, data_url: str | None) -> Document:
    """Build the container's policy: pull the image, read the model, write logs and metrics."""
    arns = Arns(config, region, account)
    statements = [
        _allow(["ecr:GetAuthorizationToken"], "*"),
        _allow(PULL, arns.repository),
        _allow(
            ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"],
            arns.of("logs", "log-group:/aws/sagemaker/*"),
        ),
        _allow(
            ["cloudwatch:PutMetricData"],
            "*",
            Condition={
                "StringLike": {"cloudwatch:namespace": ["AWS/SageMaker", "/aws/sagemaker/*"]}
            },
        ),
    ]
    readable = [url for url in (data_url, *config.model.additional.values()) if url]
    for url in readable:
        statements += [_reading(arns, url), _listing(arns, url)]
    statements += [_allow(["s3:PutObject"], f"{arns.object(url)}*") for url in _outputs(config)]
    if config.asynchronous:
        # Inputs of asynchronous calls may be anywhere in the output's bucket.
        bucket = arns.bucket(config.asynchronous.output)
        statements.append(_allow(["s3:GetObject"], f"{bucket}/*"))
        topics = (config.asynchronous.success_topic, config.asynchronous.error_topic)
        statements += [_allow(["sns:Publish"], topic) for topic in topics if topic]
    if config.kms_key:
        actions = ["kms:Decrypt", "kms:GenerateDataKey"]
        statements.append(_with_key(arns, config.kms_key, actions))
    if config.network.subnets:
        statements.append(_allow(_VPC_ACTIONS, "*"))
    return _document(statements)


def deployer(config: Config, region: str, account: str) -> Document:
    """Build the policy that a person or CI needs for every command on this deployment.

    Adapters are components of any name, so the deployment's tag distinguishes them.
    """
    arns = Arns(config, region, account)
    statements = [
        *_sagemaker(arns, config),
        _allow(
            ["iam:PassRole"],
            config.role,
            Condition={"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
        ),
        _allow(["iam:GetRole"], config.role),
        _allow(
            ["ecr:DescribeImages", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            arns.repository,
        ),
        _allow(
            ["logs:FilterLogEvents", "logs:DescribeLogStreams", "logs:GetLogEvents"],
            _log_groups(arns, config),
        ),
    ]
    if config.bucket:
        statements += _uploads(arns, config.bucket, config.name)
    results = _outputs(config)
    if results:
        statements.append(_allow(["s3:GetObject"], [f"{arns.object(url)}*" for url in results]))
        statements += [_listing(arns, url) for url in results]
    if config.model.data and config.model.data.startswith("s3://"):
        statements.append(_listing(arns, config.model.data))
    if config.secrets:
        names = [_secret(arns, secret) for secret in config.secrets.values()]
        statements.append(_allow(["secretsmanager:GetSecretValue"], names))
    if config.kms_key:
        grants = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
        statements.append(_with_key(arns, config.kms_key, ["kms:DescribeKey"]))
        statements.append(_with_key(arns, config.kms_key, ["kms:CreateGrant"], grants))
    if not config.serverless:
        statements += _scaling(arns, config)
    return _document(statements)


def repository(config: Config, account: str) -> Document | None:
    """Build the policy of a repository in another account, which must let the role pull.

    Returns None if the image is in the deployment's own account.
    """
    match = ECR_HOST.match(config.image)
    if not match or match[1] == account or not account.isdigit():
        return None
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": config.role},
        "Action": PULL,
    }
    return _document([statement])


def _sagemaker(arns: Arns, config: Config) -> list[Document]:
    hashed = [arns.sagemaker(kind, HASH) for kind in ("model", "endpoint-config")]
    endpoint = arns.sagemaker("endpoint")
    components = arns.of("sagemaker", "inference-component/*")
    job = arns.sagemaker("transform-job", "-??????????")  # the seconds since 1970
    tag = {"StringEquals": {f"aws:RequestTag/{TAG}": config.name}}
    tagged = {"StringEquals": {f"aws:ResourceTag/{TAG}": config.name}}
    return [
        _allow(_actions(("Create", "Describe", "Delete"), ("Model", "EndpointConfig")), hashed),
        _allow(
            [
                *_actions(("Create", "Describe", "Delete", "Update"), ("Endpoint",)),
                "sagemaker:UpdateEndpointWeightsAndCapacities",
                *INVOCATIONS,
            ],
            endpoint,
        ),
        # An update names the endpoint and its new config; a component, its endpoint and model.
        _allow(["sagemaker:CreateEndpoint", "sagemaker:UpdateEndpoint"], hashed[1]),
        _allow(["sagemaker:CreateInferenceComponent"], [endpoint, hashed[0]]),
        _allow(["sagemaker:UpdateInferenceComponent"], [endpoint, hashed[0]]),
        _allow(["sagemaker:CreateInferenceComponent"], components, Condition=tag),
        _allow(
            [
                *_actions(("Describe", "Delete", "Update"), ("InferenceComponent",)),
                "sagemaker:UpdateInferenceComponentRuntimeConfig",
                *INVOCATIONS,
            ],
            components,
            Condition=tagged,
        ),
        _allow(
            ["sagemaker:CreateTransformJob", "sagemaker:DescribeTransformJob",
             "sagemaker:StopTransformJob"], job,
        ),
        _allow(["sagemaker:CreateTransformJob"], hashed[0]),
        _allow(["sagemaker:AddTags", "sagemaker:ListTags"], [*hashed, endpoint, job]),
        _allow(["sagemaker:AddTags"], components, Condition=tag),
        _allow(
            ["sagemaker:ListEndpointConfigs", "sagemaker:ListModels",
             "sagemaker:ListInferenceComponents"], "*",
        ),
    ]  # fmt: skip


def _actions(verbs: tuple[str, ...], nouns: tuple[str, ...]) -> list[str]:
    return [f"sagemaker:{verb}{noun}" for noun in nouns for verb in verbs]


def _log_groups(arns: Arns, config: Config) -> list[str]:
    groups = [
        f"{ENDPOINT_LOGS}{config.name}",
        JOB_LOGS,
        # Of components there is only the name, and an adapter's may be any.
        f"{COMPONENT_LOGS}*",
    ]
    return [arns.of("logs", f"log-group:{group}:*") for group in groups]


def _uploads(arns: Arns, bucket: str, name: str) -> list[Document]:
    prefix = artifact_prefix(name)
    actions = ["s3:PutObject", "s3:GetObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    condition = {"StringLike": {"s3:prefix": [f"{prefix}*"]}}
    return [
        _allow(actions, arns.object(f"s3://{bucket}/{prefix}*")),
        _allow(["s3:ListBucket"], arns.bucket(bucket), Condition=condition),
    ]


def _scaling(arns: Arns, config: Config) -> list[Document]:
    namespace = {"StringEqualsIfExists": {"application-autoscaling:service-namespace": "sagemaker"}}
    scaled = (f"endpoint/{config.name}/", f"inference-component/{component_name(config)}")
    tracking = [arns.of("cloudwatch", f"alarm:TargetTracking-{part}*") for part in scaled]
    role = (
        f"arn:{arns.partition}:iam::{arns.account}:role/aws-service-role/{SCALING_SERVICE}/"
        "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
    )
    return [
        _allow(
            _SCALING_ACTIONS,
            arns.of("application-autoscaling", "scalable-target/*"),
            Condition=namespace,
        ),
        _allow(
            [
                "application-autoscaling:DescribeScalableTargets",
                "application-autoscaling:DescribeScalingPolicies",
                "application-autoscaling:DescribeScalingActivities",
            ],
            "*",
        ),
        _allow(
            ["cloudwatch:PutMetricAlarm", "cloudwatch:DescribeAlarms", "cloudwatch:DeleteAlarms"],
            [arns.of("cloudwatch", f"alarm:{from_zero_name(config.name)}"), *tracking],
        ),
        _allow(
            ["iam:CreateServiceLinkedRole"],
            role,
            Condition={"StringEquals": {"iam:AWSServiceName": SCALING_SERVICE}},
        ),
    ]


_SCALING_ACTIONS = [
    "application-autoscaling:RegisterScalableTarget",
    "application-autoscaling:DeregisterScalableTarget",
    "application-autoscaling:PutScalingPolicy",
    "application-autoscaling:DeleteScalingPolicy",
]
_VPC_ACTIONS = [
    "ec2:CreateNetworkInterface",
    "ec2:CreateNetworkInterfacePermission",
    "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission",
    "ec2:DescribeDhcpOptions",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
]


def _outputs(config: Config) -> list[str]:
    urls = [config.capture.destination] if config.capture else []
    if config.asynchronous:
        urls += [config.asynchronous.output]
        urls += [config.asynchronous.failures] if config.asynchronous.failures else []
    return urls


def _reading(arns: Arns, url: str) -> Document:
    reading = arns.object(url) if url.endswith(".tar.gz") else f"{arns.object(url).rstrip('/')}/*"
    return _allow(["s3:GetObject"], reading)


def _listing(arns: Arns, url: str) -> Document:
    key = url.removeprefix("s3://").partition("/")[2]
    condition = {"StringLike": {"s3:prefix": [f"{key.rstrip('/')}*"]}}
    return _allow(["s3:ListBucket"], arns.bucket(url), Condition=condition)


def _secret(arns: Arns, secret: str) -> str:
    if secret.startswith("arn:"):
        return secret
    # Secrets Manager adds six characters to a secret's name.
    return arns.of("secretsmanager", f"secret:{secret}-??????")


def _with_key(
    arns: Arns, key: str, actions: list[str], condition: Document | None = None
) -> Document:
    """Allow actions on a key that is named by its ARN, its id or an alias."""
    condition = dict(condition or {})
    alias = key.rpartition(":")[2]
    if alias.startswith("alias/"):  # policies have no aliases as resources, only in conditions
        condition["ForAnyValue:StringEquals"] = {"kms:ResourceAliases": alias}
        key = arns.of("kms", "key/*")
    elif not key.startswith("arn:"):
        key = arns.of("kms", f"key/{key.removeprefix('key/')}")
    return _allow(actions, key, **({"Condition": condition} if condition else {}))


def _allow(actions: list[str], resource: str | list[str], **more: Any) -> Document:
    return {"Effect": "Allow", "Action": actions, "Resource": resource, **more}


def _document(statements: list[Document]) -> Document:
    return {"Version": "2012-10-17", "Statement": statements}
