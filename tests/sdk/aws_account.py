"""What an account has before a deployment: an image in ECR, a role, a bucket; all in moto."""

import json

import boto3

from tests.support.local_sagemaker import IMAGE

ROLE_NAME = "SageMaker"
BUCKET = "models"
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 1,
               "digest": "sha256:" + "0" * 64},
    "layers": [],
}  # fmt: skip


def furnish() -> dict[str, str]:
    """Make them; what a configuration needs to name them."""
    ecr, iam, s3 = boto3.client("ecr"), boto3.client("iam"), boto3.client("s3")
    account = boto3.client("sts").get_caller_identity()["Account"]
    ecr.create_repository(repositoryName="llm")
    ecr.put_image(repositoryName="llm", imageManifest=json.dumps(MANIFEST), imageTag="1")
    trust = {"Version": "2012-10-17", "Statement": []}
    role = iam.create_role(RoleName=ROLE_NAME, AssumeRolePolicyDocument=json.dumps(trust))
    s3.create_bucket(Bucket=BUCKET)
    image = IMAGE.replace("000000000000", account)
    return {"image": image, "role": role["Role"]["Arn"], "bucket": BUCKET}
