"""Reads the bytes of a model's weights and of one token's KV cache: a folder, S3 or the Hub."""

import json
import urllib.request
from pathlib import Path
from typing import Any

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import AwsError, NotFound
from sagemaker_deploy.plan.sizing import UNKNOWN, ModelSize, kv_bytes_per_token

HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 5.0


def model_size(aws: Aws | None, config: Config, hub: str = HUB) -> ModelSize:
    """Read the bytes of the weights and of one token's KV cache from the folder, S3 or the Hub."""
    data, model_id = config.model.data, config.model.id
    if data and data.startswith("s3://"):
        return _size_on_s3(aws, data) if aws else UNKNOWN
    if data and Path(data).is_dir():
        return _size_of_folder(Path(data))
    if model_id and Path(model_id).is_dir():  # as the local endpoint allows
        return _size_of_folder(Path(model_id))
    if model_id and not data:
        return _size_on_hub(model_id, hub)
    return UNKNOWN


def _size_on_s3(aws: Aws, url: str) -> ModelSize:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    pages = aws.pages("s3", "list_objects_v2", Bucket=bucket, Prefix=prefix)
    try:
        objects = [item for page in pages for item in page.get("Contents", [])]
    except (AwsError, NotFound):  # no permission, or no such bucket
        return UNKNOWN
    if url.endswith(".tar.gz"):
        size = sum(item["Size"] for item in objects if f"s3://{bucket}/{item['Key']}" == url)
        return ModelSize(size, 0, "the packed archive")
    weights = [item["Size"] for item in objects if item["Key"].endswith(".safetensors")]
    return ModelSize(sum(weights), 0, "safetensors on S3")


def _size_of_folder(folder: Path) -> ModelSize:
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = {}
    return ModelSize(weights, kv_bytes_per_token(config), "safetensors in the folder")


def _size_on_hub(model_id: str, hub: str) -> ModelSize:
    try:
        files = _json(f"{hub}/api/models/{model_id}/tree/main")
        config = _json(f"{hub}/{model_id}/resolve/main/config.json")
    except (OSError, ValueError):  # no network, no such model, or a gated one
        return UNKNOWN
    weights = [int(item["size"]) for item in files if item["path"].endswith(".safetensors")]
    return ModelSize(sum(weights), kv_bytes_per_token(config), "safetensors on the Hub")


def _json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=HUB_TIMEOUT_S) as answer:
        return json.load(answer)
