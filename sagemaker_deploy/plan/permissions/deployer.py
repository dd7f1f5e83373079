"""The policy of the person or CI that deploys: every command on one deployment. Pure."""

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan import monitoring
from sagemaker_deploy.plan.capacity.scaling import from_zero_name
from sagemaker_deploy.plan.permissions.arns import Arns
from sagemaker_deploy.plan.permissions.documents import (
    Document,
    allow,
    document,
    listing,
    outputs,
    with_key,
)
from sagemaker_deploy.plan.requests import (
    COMPONENT_LOGS,
    ENDPOINT_LOGS,
    JOB_LOGS,
    TAG,
    artifact_prefix,
    component_name,
)

HASH = "-????????"  # eight characters, as `requests.hashed` adds them
SCALING_SERVICE = "sagemaker.application-autoscaling.amazonaws.com"
INVOCATIONS = [
    "sagemaker:InvokeEndpoint",
    "sagemaker:InvokeEndpointWithResponseStream",
    "sagemaker:InvokeEndpointAsync",
]
_ALARM_ACTIONS = [
    "cloudwatch:PutMetricAlarm",
    "cloudwatch:DescribeAlarms",
    "cloudwatch:DeleteAlarms",
]
# The tag marks the deployment's own alarms; only those are deleted.
_TAG_ACTIONS = ["cloudwatch:TagResource", "cloudwatch:ListTagsForResource"]
_SCALING_ACTIONS = [
    "application-autoscaling:RegisterScalableTarget",
    "application-autoscaling:DeregisterScalableTarget",
    "application-autoscaling:PutScalingPolicy",
    "application-autoscaling:DeleteScalingPolicy",
    "application-autoscaling:PutScheduledAction",
    "application-autoscaling:DeleteScheduledAction",
]


def deployer(config: Config, region: str, account: str) -> Document:
    """Build the policy that a person or CI needs for every command on this deployment.

    Adapters are components of any name, so the deployment's tag distinguishes them.
    """
    arns = Arns(config, region, account)
    statements = [
        *_sagemaker(arns, config),
        allow(
            ["iam:PassRole"],
            config.role,
            Condition={"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
        ),
        allow(["iam:GetRole"], config.role),
        allow(
            ["ecr:DescribeImages", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            arns.repositories,
        ),
        allow(
            ["logs:FilterLogEvents", "logs:DescribeLogStreams", "logs:GetLogEvents"],
            _log_groups(arns, config),
        ),
    ]
    if config.bucket:
        statements += _uploads(arns, config.bucket, config.name)
    results = outputs(config)
    if results:
        statements.append(allow(["s3:GetObject"], [f"{arns.object(url)}*" for url in results]))
        statements += [listing(arns, url) for url in results]
    if config.model.data and config.model.data.startswith("s3://"):
        statements.append(listing(arns, config.model.data))
    if config.secrets:
        names = [_secret(arns, secret) for secret in config.secrets.values()]
        statements.append(allow(["secretsmanager:GetSecretValue"], names))
    if config.kms_key:
        grants = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
        statements.append(with_key(arns, config.kms_key, ["kms:DescribeKey"]))
        statements.append(with_key(arns, config.kms_key, ["kms:CreateGrant"], grants))
    statements += _monitoring(arns, config)
    if not config.serverless:
        statements += _scaling(arns, config)
    return document(statements)


def _sagemaker(arns: Arns, config: Config) -> list[Document]:
    hashed = [arns.sagemaker(kind, HASH) for kind in ("model", "endpoint-config")]
    endpoint = arns.sagemaker("endpoint")
    components = arns.of("sagemaker", "inference-component/*")
    job = arns.sagemaker("transform-job", "-??????????")  # the seconds since 1970
    tag = {"StringEquals": {f"aws:RequestTag/{TAG}": config.name}}
    tagged = {"StringEquals": {f"aws:ResourceTag/{TAG}": config.name}}
    return [
        allow(_actions(("Create", "Describe", "Delete"), ("Model", "EndpointConfig")), hashed),
        allow(
            [
                *_actions(("Create", "Describe", "Delete", "Update"), ("Endpoint",)),
                "sagemaker:UpdateEndpointWeightsAndCapacities",
                *INVOCATIONS,
            ],
            endpoint,
        ),
        # An update names the endpoint and its new config; a component, its endpoint and model.
        allow(["sagemaker:CreateEndpoint", "sagemaker:UpdateEndpoint"], hashed[1]),
        allow(["sagemaker:CreateInferenceComponent"], [endpoint, hashed[0]]),
        allow(["sagemaker:UpdateInferenceComponent"], [endpoint, hashed[0]]),
        allow(["sagemaker:CreateInferenceComponent"], components, Condition=tag),
        allow(
            [
                *_actions(("Describe", "Delete", "Update"), ("InferenceComponent",)),
                "sagemaker:UpdateInferenceComponentRuntimeConfig",
                *INVOCATIONS,
            ],
            components,
            Condition=tagged,
        ),
        allow(
            ["sagemaker:CreateTransformJob", "sagemaker:DescribeTransformJob",
             "sagemaker:StopTransformJob"], job,
        ),
        allow(["sagemaker:CreateTransformJob"], hashed[0]),
        allow(["sagemaker:AddTags", "sagemaker:ListTags"], [*hashed, endpoint, job]),
        allow(["sagemaker:AddTags"], components, Condition=tag),
        allow(["sagemaker:ListTags"], components, Condition=tagged),
        allow(
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
        allow(actions, arns.object(f"s3://{bucket}/{prefix}*")),
        allow(["s3:ListBucket"], arns.bucket(bucket), Condition=condition),
    ]


def _monitoring(arns: Arns, config: Config) -> list[Document]:
    dashboard = f"arn:{arns.partition}:cloudwatch::{arns.account}:dashboard/"
    own = (from_zero_name(config.name), *monitoring.own_alarm_names(config.name))
    actions = ["cloudwatch:GetDashboard", "cloudwatch:PutDashboard", "cloudwatch:DeleteDashboards"]
    return [
        allow(_ALARM_ACTIONS + _TAG_ACTIONS, arns.alarms(own)),
        *(
            [allow(["cloudwatch:DescribeAlarms"], arns.alarms(config.update.alarms))]
            if config.update.alarms
            else []
        ),
        allow(actions, dashboard + monitoring.dashboard_name(config.name)),
        allow(["servicequotas:ListServiceQuotas"], "*"),
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
        allow(
            _SCALING_ACTIONS,
            arns.of("application-autoscaling", "scalable-target/*"),
            Condition=namespace,
        ),
        allow(
            [
                "application-autoscaling:DescribeScalableTargets",
                "application-autoscaling:DescribeScalingPolicies",
                "application-autoscaling:DescribeScalingActivities",
                "application-autoscaling:DescribeScheduledActions",
            ],
            "*",
        ),
        allow(_ALARM_ACTIONS, tracking),
        allow(
            ["iam:CreateServiceLinkedRole"],
            role,
            Condition={"StringEquals": {"iam:AWSServiceName": SCALING_SERVICE}},
        ),
    ]


def _secret(arns: Arns, secret: str) -> str:
    if secret.startswith("arn:"):
        return secret
    # Secrets Manager adds six characters to a secret's name.
    return arns.of("secretsmanager", f"secret:{secret}-??????")
