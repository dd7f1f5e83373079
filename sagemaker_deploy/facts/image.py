"""Reads what ECR knows of an image: whether it exists, its kind, size and architectures."""

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.errors import DeployError, NotFound
from sagemaker_deploy.plan.checks import EcrImage

TIMEOUT_S = 5.0
MANIFESTS = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
]


def describe_image(aws: Aws, image: str) -> EcrImage:
    """Describe an image of ECR; nothing is known of another registry's, or without permission."""
    host, _, path = image.partition("/")
    if ".dkr.ecr." not in host:
        return EcrImage()
    repository, _, digest = path.partition("@")
    name, _, tag = repository.partition(":")
    image_id = {"imageDigest": digest} if digest else {"imageTag": tag or "latest"}
    where: dict[str, Any] = {
        "registryId": host.partition(".")[0],
        "repositoryName": name,
        "imageIds": [image_id],
    }
    try:
        details = aws.call("ecr", "describe_images", **where)["imageDetails"][0]
    except NotFound:
        return EcrImage(exists=False)
    except (DeployError, IndexError):
        return EcrImage()
    return EcrImage(
        True,
        details.get("imageManifestMediaType"),
        int(details.get("imageSizeInBytes", 0)),
        _architectures(aws, where),
    )


def _architectures(aws: Aws, where: Mapping[str, Any]) -> frozenset[str]:
    try:
        answer = aws.call("ecr", "batch_get_image", acceptedMediaTypes=MANIFESTS, **where)
        manifest = json.loads(answer["images"][0]["imageManifest"])
        if "manifests" in manifest:
            platforms = [each.get("platform", {}) for each in manifest["manifests"]]
            return frozenset(each.get("architecture") for each in platforms) - {None, "unknown"}
        blob = {key: where[key] for key in ("registryId", "repositoryName")}
        blob["layerDigest"] = manifest["config"]["digest"]
        url = aws.call("ecr", "get_download_url_for_layer", **blob)["downloadUrl"]
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return frozenset({str(json.load(response)["architecture"])})
    except (DeployError, OSError, LookupError, TypeError, ValueError):
        return frozenset()
