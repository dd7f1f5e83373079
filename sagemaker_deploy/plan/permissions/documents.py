"""Parts of IAM policy documents: statements about buckets, keys and secrets. Pure."""

from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan.permissions.arns import Arns

Document = dict[str, Any]
PULL = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"]


def outputs(config: Config) -> list[str]:
    """List the S3 URLs that the endpoint writes to."""
    urls = [config.capture.destination] if config.capture else []
    if config.asynchronous:
        urls += [config.asynchronous.output]
        urls += [config.asynchronous.failures] if config.asynchronous.failures else []
    return urls


def listing(arns: Arns, url: str) -> Document:
    """Allow listing the keys that begin like a URL."""
    key = url.removeprefix("s3://").partition("/")[2]
    condition = {"StringLike": {"s3:prefix": [f"{key.rstrip('/')}*"]}}
    return allow(["s3:ListBucket"], arns.bucket(url), Condition=condition)


def with_key(
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
    return allow(actions, key, **({"Condition": condition} if condition else {}))


def allow(actions: list[str], resource: str | list[str] | Document, **more: Any) -> Document:
    """Build a statement that allows actions on a resource: ARNs, or a reference of a template."""
    return {"Effect": "Allow", "Action": actions, "Resource": resource, **more}


def document(statements: list[Document]) -> Document:
    """Build a policy document."""
    return {"Version": "2012-10-17", "Statement": statements}
