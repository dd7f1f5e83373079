"""Policies of the execution role: who may assume it, and what it may do."""

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan import monitoring
from sagemaker_deploy.plan.permissions.arns import ECR_HOST, Arns
from sagemaker_deploy.plan.permissions.documents import (
    PULL,
    Document,
    allow,
    document,
    listing,
    outputs,
    with_key,
)
from sagemaker_deploy.plan.variants import all_changes

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


def trust() -> Document:
    """Build the trust policy: SageMaker may assume the execution role."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sagemaker.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    return document([statement])


def execution(config: Config, region: str, account: str, data_url: str | None) -> Document:
    """Build the container's policy: pull the image, read the model, write logs and metrics."""
    arns = Arns(config, region, account)
    statements = [
        allow(["ecr:GetAuthorizationToken"], "*"),
        allow(PULL, arns.repositories),
        allow(
            ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"],
            arns.of("logs", "log-group:/aws/sagemaker/*"),
        ),
        allow(
            ["cloudwatch:PutMetricData"],
            "*",
            Condition={
                "StringLike": {"cloudwatch:namespace": ["AWS/SageMaker", "/aws/sagemaker/*"]}
            },
        ),
    ]
    others = (changes.model.data for changes in all_changes(config).values() if changes.model)
    readable = (data_url, *config.model.additional.values(), *others)
    for url in [url for url in readable if url]:
        statements += [_reading(arns, url), listing(arns, url)]
    statements += [allow(["s3:PutObject"], f"{arns.object(url)}*") for url in outputs(config)]
    if config.asynchronous:
        # Inputs of asynchronous calls may be anywhere in the output's bucket.
        bucket = arns.bucket(config.asynchronous.output)
        statements.append(allow(["s3:GetObject"], f"{bucket}/*"))
        topics = (config.asynchronous.success_topic, config.asynchronous.error_topic)
        statements += [allow(["sns:Publish"], topic) for topic in topics if topic]
    if config.kms_key:
        actions = ["kms:Decrypt", "kms:GenerateDataKey"]
        statements.append(with_key(arns, config.kms_key, actions))
    if config.network.subnets:
        statements.append(allow(_VPC_ACTIONS, "*"))
    if alarms := monitoring.rollback_alarms(config):  # SageMaker watches them by this role
        statements.append(allow(["cloudwatch:DescribeAlarms"], arns.alarms(alarms)))
    return document(statements)


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
    return document([statement])


def _reading(arns: Arns, url: str) -> Document:
    reading = arns.object(url) if url.endswith(".tar.gz") else f"{arns.object(url).rstrip('/')}/*"
    return allow(["s3:GetObject"], reading)
