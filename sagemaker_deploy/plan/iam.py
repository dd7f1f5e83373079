"""Builds IAM policies with the least permissions that a deployment needs. Pure; returns dicts."""

from typing import Any

from sagemaker_deploy.config import Config

Document = dict[str, Any]


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
    statements = [
        _allow(["ecr:GetAuthorizationToken"], "*"),
        _allow(
            ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"],
            f"arn:aws:ecr:{region}:{account}:repository/{_repository(config.image)}",
        ),
        _allow(
            ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"],
            f"arn:aws:logs:{region}:{account}:log-group:/aws/sagemaker/*",
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
    statements += [statement for url in readable for statement in _read(url)]
    writable = [config.capture.destination] if config.capture else []
    if config.asynchronous:
        writable += [config.asynchronous.output]
        writable += [config.asynchronous.failures] if config.asynchronous.failures else []
    statements += [_allow(["s3:PutObject"], f"{_object_arn(url)}*") for url in writable]
    if config.asynchronous:
        # Inputs of asynchronous calls may be anywhere in the output's bucket.
        statements.append(_allow(["s3:GetObject"], f"{_bucket_arn(config.asynchronous.output)}/*"))
        topics = (config.asynchronous.success_topic, config.asynchronous.error_topic)
        statements += [_allow(["sns:Publish"], topic) for topic in topics if topic]
    if config.network.subnets:
        statements.append(_allow(_VPC_ACTIONS, "*"))
    return _document(statements)


def deployer(config: Config, region: str, account: str) -> Document:
    """Build the policy that a person or CI needs to execute the plan."""
    own = f"arn:aws:sagemaker:{region}:{account}"
    name = config.name.lower()
    resources = [f"{own}:{kind}/{name}*" for kind in ("model", "endpoint-config", "endpoint")]
    resources.append(f"{own}:inference-component/{name}*")
    statements = [
        _allow(_SAGEMAKER_ACTIONS, resources),
        _allow(["sagemaker:ListEndpointConfigs", "sagemaker:ListModels"], "*"),
        _allow(["sagemaker:ListInferenceComponents"], "*"),
        _allow(
            ["iam:PassRole"],
            config.role,
            Condition={"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
        ),
        _allow(["iam:GetRole"], config.role),
        _allow(
            ["ecr:DescribeImages"],
            f"arn:aws:ecr:{region}:{account}:repository/{_repository(config.image)}",
        ),
        _allow(
            ["logs:FilterLogEvents"],
            f"arn:aws:logs:{region}:{account}:log-group:/aws/sagemaker/Endpoints/{config.name}:*",
        ),
    ]
    if config.bucket:
        keys = f"arn:aws:s3:::{config.bucket}/sagemaker-deploy/{config.name}/*"
        actions = ["s3:PutObject", "s3:GetObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        statements.append(_allow(actions, keys))
        statements.append(_allow(["s3:ListBucket"], f"arn:aws:s3:::{config.bucket}"))
    if config.secrets:
        names = [_secret_arn(secret, region, account) for secret in config.secrets.values()]
        statements.append(_allow(["secretsmanager:GetSecretValue"], names))
    if config.scaling:
        statements.append(_allow(_SCALING_ACTIONS, "*"))
    return _document(statements)


_SAGEMAKER_ACTIONS = [
    f"sagemaker:{verb}{noun}"
    for noun in ("Model", "EndpointConfig", "Endpoint", "InferenceComponent")
    for verb in ("Create", "Describe", "Delete")
] + [
    "sagemaker:UpdateEndpoint",
    "sagemaker:UpdateEndpointWeightsAndCapacities",
    "sagemaker:UpdateInferenceComponent",
    "sagemaker:UpdateInferenceComponentRuntimeConfig",
    "sagemaker:InvokeEndpoint",
    "sagemaker:InvokeEndpointAsync",
    "sagemaker:AddTags",
    "sagemaker:ListTags",
]
_SCALING_ACTIONS = [
    "application-autoscaling:RegisterScalableTarget",
    "application-autoscaling:DeregisterScalableTarget",
    "application-autoscaling:PutScalingPolicy",
    "application-autoscaling:DescribeScalableTargets",
    "application-autoscaling:DescribeScalingPolicies",
    "cloudwatch:PutMetricAlarm",
    "cloudwatch:DescribeAlarms",
    "cloudwatch:DeleteAlarms",
    "iam:CreateServiceLinkedRole",
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


def _read(url: str) -> list[Document]:
    bucket = _bucket_arn(url)
    key = url.removeprefix("s3://").partition("/")[2]
    listing = _allow(
        ["s3:ListBucket"], bucket, Condition={"StringLike": {"s3:prefix": [f"{key.rstrip('/')}*"]}}
    )
    reading = _object_arn(url) if url.endswith(".tar.gz") else f"{_object_arn(url).rstrip('/')}/*"
    return [_allow(["s3:GetObject"], reading), listing]


def _bucket_arn(url: str) -> str:
    return f"arn:aws:s3:::{url.removeprefix('s3://').partition('/')[0]}"


def _object_arn(url: str) -> str:
    return f"arn:aws:s3:::{url.removeprefix('s3://')}"


def _secret_arn(secret: str, region: str, account: str) -> str:
    if secret.startswith("arn:"):
        return secret
    # Secrets Manager adds six characters to a secret's name.
    return f"arn:aws:secretsmanager:{region}:{account}:secret:{secret}-??????"


def _repository(image: str) -> str:
    path = image.partition("/")[2]
    return path.partition("@")[0].partition(":")[0]


def _allow(actions: list[str], resource: str | list[str], **more: Any) -> Document:
    return {"Effect": "Allow", "Action": actions, "Resource": resource, **more}


def _document(statements: list[Document]) -> Document:
    return {"Version": "2012-10-17", "Statement": statements}
