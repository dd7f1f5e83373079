"""An account before a deployment: an image in ECR, a role, a bucket; all in moto."""

import json
from urllib.parse import quote

import boto3
import pytest
from moto.core.responses import ActionResult
from moto.ecr.responses import ECRResponse
from moto.servicequotas.responses import ServiceQuotasResponse

from tests.support.aws.local_sagemaker import IMAGE

ROLE_NAME = "SageMaker"
BUCKET = "models"
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 1,
               "digest": "sha256:" + "0" * 64},
    "layers": [],
}  # fmt: skip


# The image's configuration, which moto cannot serve: without an answer each plan would wait for
# eight attempts of botocore.
CONFIG_URL = "data:application/json," + quote(json.dumps({"architecture": "amd64"}))


def serve_image_config(patch: pytest.MonkeyPatch) -> None:
    """Make moto answer ECR's GetDownloadUrlForLayer."""
    answer = ActionResult({"downloadUrl": CONFIG_URL, "layerDigest": MANIFEST["config"]["digest"]})
    patch.setattr(ECRResponse, "get_download_url_for_layer", lambda _: answer)


def serve_quotas(patch: pytest.MonkeyPatch) -> None:
    """Make moto answer ListServiceQuotas, which it does not know: the account has none."""
    answer = json.dumps({"Quotas": []})
    patch.setattr(ServiceQuotasResponse, "list_service_quotas", lambda _: answer, raising=False)


def furnish() -> dict[str, str]:
    """Create them; return the fields of a configuration that name them."""
    ecr, iam, s3 = boto3.client("ecr"), boto3.client("iam"), boto3.client("s3")
    account = boto3.client("sts").get_caller_identity()["Account"]
    ecr.create_repository(repositoryName="llm")
    ecr.put_image(repositoryName="llm", imageManifest=json.dumps(MANIFEST), imageTag="1")
    trust = {"Version": "2012-10-17", "Statement": []}
    role = iam.create_role(RoleName=ROLE_NAME, AssumeRolePolicyDocument=json.dumps(trust))
    s3.create_bucket(Bucket=BUCKET)
    image = IMAGE.replace("000000000000", account)
    return {"image": image, "role": role["Role"]["Arn"], "bucket": BUCKET}
