"""An IAM evaluator that knows only given policies: boto3's calls are refused as AWS refuses them.

The actions and resources of a call follow the Service Authorization Reference, by botocore's
operation names; `ResourceTag` conditions see the tags that the resource was created with.
"""

import fnmatch
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import botocore.client
import botocore.exceptions

ACCOUNT, REGION = "123456789012", "us-east-1"
Ask = tuple[str, str, dict[str, str]]  # action, resource, context


@dataclass
class Evaluator:
    """Decides by allow statements alone; remembers what was asked."""

    documents: list[Mapping[str, Any]]
    denied: tuple[str, ...] = ()
    tags: dict[str, Mapping[str, str]] = field(default_factory=dict)
    refused: list[Ask] = field(default_factory=list)
    asked: list[Ask] = field(default_factory=list)

    def allows(self, action: str, resource: str, context: Mapping[str, str]) -> bool:
        """Whether any statement allows it, and it is not denied."""
        return action not in self.denied and any(
            _covers(statement["Action"], action)
            and _covers(statement["Resource"], resource)
            and _holds(statement.get("Condition", {}), context)
            for document in self.documents
            for statement in document["Statement"]
        )

    def check(self, service: str, operation: str, params: Mapping[str, Any]) -> None:
        """Raise AccessDenied for a call that the policies do not allow."""
        for action, resource, context in asks(service, operation, params):
            tags = self.tags.get(resource, {})
            context |= {f"aws:ResourceTag/{key}": value for key, value in tags.items()}
            self.asked.append((action, resource, context))
            if not self.allows(action, resource, context):
                self.refused.append((action, resource, context))
                message = f"User is not authorized to perform: {action} on resource: {resource}"
                error = {"Error": {"Code": "AccessDeniedException", "Message": message}}
                raise botocore.exceptions.ClientError(error, operation)  # type: ignore[arg-type]
        for arn, tags in _new_tags(service, operation, params):
            self.tags[arn] = tags


@contextmanager
def enforced(*documents: Mapping[str, Any], denied: tuple[str, ...] = ()) -> Iterator[Evaluator]:
    """Refuse every call of boto3 that the documents do not allow, for the length of a block."""
    evaluator = Evaluator([json.loads(json.dumps(document)) for document in documents], denied)
    call = botocore.client.BaseClient._make_api_call

    def checked(client: Any, operation: str, params: Any) -> Any:
        evaluator.check(client.meta.service_model.service_name, operation, params)
        return call(client, operation, params)

    with mock.patch.object(botocore.client.BaseClient, "_make_api_call", checked):
        yield evaluator


def asks(service: str, operation: str, params: Mapping[str, Any]) -> Iterator[Ask]:
    """Yield every action, resource and context that IAM decides on for a call."""
    if service == "sts":
        return
    build = {
        "sagemaker": _sagemaker, "sagemaker-runtime": _runtime, "s3": _s3, "ecr": _ecr,
        "iam": _iam, "logs": _logs, "cloudwatch": _cloudwatch,
        "application-autoscaling": _autoscaling, "secretsmanager": _secrets,
        "service-quotas": _quotas,
    }[service]  # fmt: skip
    yield from build(operation, params)


def sagemaker_arn(kind: str, name: str) -> str:
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name.lower()}"


EVERYTHING = {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
KINDS = {
    "EndpointConfigName": "endpoint-config", "EndpointName": "endpoint", "ModelName": "model",
    "InferenceComponentName": "inference-component", "TransformJobName": "transform-job",
}  # fmt: skip


def _sagemaker(operation: str, params: Mapping[str, Any]) -> Iterator[Ask]:
    action = f"sagemaker:{operation}"
    if operation in ("ListTags", "AddTags"):
        context = {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in params.get("Tags", [])}
        yield action, params["ResourceArn"].replace("000000000000", ACCOUNT), context
        return
    if operation.startswith("List"):
        yield action, "*", {}
        return
    tags = {tag["Key"]: tag["Value"] for tag in params.get("Tags", [])}
    request = {f"aws:RequestTag/{key}": value for key, value in tags.items()}
    named = {kind: params[field] for field, kind in KINDS.items() if field in params}
    model = params.get("Specification", {}).get("ModelName")
    if model:
        named["model"] = model
    for kind, name in named.items():
        yield action, sagemaker_arn(kind, name), dict(request)
    if tags:
        own = {field: kind for field, kind in KINDS.items() if operation == f"Create{field[:-4]}"}
        [(field_name, kind)] = own.items()
        yield "sagemaker:AddTags", sagemaker_arn(kind, params[field_name]), dict(request)
    if "ExecutionRoleArn" in params:
        passed = {"iam:PassedToService": "sagemaker.amazonaws.com"}
        yield "iam:PassRole", params["ExecutionRoleArn"], passed
    if "KmsKeyId" in params:
        grant = {"kms:GrantIsForAWSResource": "true"}
        yield "kms:CreateGrant", params["KmsKeyId"], grant


def _new_tags(
    service: str, operation: str, params: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, str]]]:
    if service == "sagemaker" and operation == "CreateInferenceComponent":
        arn = sagemaker_arn("inference-component", params["InferenceComponentName"])
        yield arn, {tag["Key"]: tag["Value"] for tag in params.get("Tags", [])}


def _runtime(operation: str, params: Mapping[str, Any]) -> Iterator[Ask]:
    yield f"sagemaker:{operation}", sagemaker_arn("endpoint", params["EndpointName"]), {}
    if component := params.get("InferenceComponentName"):
        yield f"sagemaker:{operation}", sagemaker_arn("inference-component", component), {}


def _s3(operation: str, params: Mapping[str, Any]) -> Iterator[Ask]:
    bucket = f"arn:aws:s3:::{params['Bucket']}"
    if operation == "ListObjectsV2":
        yield "s3:ListBucket", bucket, {"s3:prefix": params.get("Prefix", "")}
        return
    actions = {"HeadObject": "GetObject", "CreateMultipartUpload": "PutObject",
               "UploadPart": "PutObject", "CompleteMultipartUpload": "PutObject"}  # fmt: skip
    yield f"s3:{actions.get(operation, operation)}", f"{bucket}/{params['Key']}", {}


def _ecr(operation: str, params: Mapping[str, Any]) -> Iterator[Ask]:
    name, account = params["repositoryName"], params["registryId"]
    yield f"ecr:{operation}", f"arn:aws:ecr:{REGION}:{account}:repository/{name}", {}


def _iam(operation: str, params: Mapping[str, Any]) -> Iterator[Ask]:
    yield f"iam:{operation}", f"arn:aws:iam::{ACCOUNT}:role/{params['RoleName']}", {}


def _logs(operation: str, params: Mapping[str, Any]) -> Iterator[Ask]:
    group = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{params['logGroupName']}:log-stream:"
    yield f"logs:{operation}", group, {}


def _cloudwatch(operation: str, params: Mapping[str, Any]) -> Iterator[Ask]:
    if "Dashboard" in operation:
        for name in params.get("DashboardNames") or [params["DashboardName"]]:
            yield f"cloudwatch:{operation}", f"arn:aws:cloudwatch::{ACCOUNT}:dashboard/{name}", {}
        return
    if "ResourceARN" in params:
        yield f"cloudwatch:{operation}", params["ResourceARN"], {}
        return
    for name in params.get("AlarmNames") or [params["AlarmName"]]:
        arn = f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:{name}"
        yield f"cloudwatch:{operation}", arn, {}
        if "Tags" in params:
            yield "cloudwatch:TagResource", arn, {}


def _autoscaling(operation: str, params: Mapping[str, Any]) -> Iterator[Ask]:
    action = f"application-autoscaling:{operation}"
    if operation.startswith("Describe"):
        yield action, "*", {}
        return
    arn = f"arn:aws:application-autoscaling:{REGION}:{ACCOUNT}:scalable-target/0ec5"
    yield action, arn, {"application-autoscaling:service-namespace": params["ServiceNamespace"]}
    if operation == "PutScalingPolicy" and params["PolicyType"] == "TargetTrackingScaling":
        name = f"TargetTracking-{params['ResourceId']}-AlarmHigh-1"
        yield from _cloudwatch("PutMetricAlarm", {"AlarmName": name})
    if operation == "RegisterScalableTarget":
        service = "sagemaker.application-autoscaling.amazonaws.com"
        role = (
            f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/{service}/"
            "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
        )
        yield "iam:CreateServiceLinkedRole", role, {"iam:AWSServiceName": service}


def _quotas(operation: str, _params: Mapping[str, Any]) -> Iterator[Ask]:
    yield f"servicequotas:{operation}", "*", {}


def _secrets(operation: str, params: Mapping[str, Any]) -> Iterator[Ask]:
    name = params["SecretId"]
    arn = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{name}-abcdef"
    yield f"secretsmanager:{operation}", arn, {}


def _covers(patterns: str | list[str], value: str) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(value, pattern.replace("[", "[[]")) for pattern in patterns)


def _holds(condition: Mapping[str, Mapping[str, Any]], context: Mapping[str, str]) -> bool:
    for operator, tests in condition.items():
        for key, expected in tests.items():
            if operator.endswith("IfExists") and key not in context:
                continue
            if key not in context or not _covers(expected, context[key]):
                return False
    return True
