"""Where model data and payloads lie: `file://` paths here, `s3://` through boto3's own chain.

With AWS_ENDPOINT_URL_S3 set to moto, say, nothing leaves this machine.
"""

import shutil
import tarfile
import tempfile
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.errors import ConfigError, NotFound


class Storage:
    """Reads and writes by URL. `connect` makes the AWS side when the first s3:// URL comes."""

    def __init__(self, connect: Callable[[], Aws]) -> None:
        self._connect = connect
        self._aws: Aws | None = None

    def read(self, url: str) -> bytes:
        """The bytes of one object. Raises NotFound."""
        with tempfile.TemporaryDirectory() as folder:
            path = self._local_copy(url, Path(folder))
            return path.read_bytes()

    def content_type(self, url: str) -> str:
        """The content type that an object was stored with; a file has none."""
        scheme, bucket, key = split(url)
        if scheme == "file":
            return "application/octet-stream"
        return str(self.aws.call("s3", "head_object", Bucket=bucket, Key=key)["ContentType"])

    def write(self, url: str, data: bytes) -> None:
        """Store one object; folders are made."""
        scheme, bucket, key = split(url)
        if scheme == "file":
            path = Path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            return
        self.aws.call("s3", "put_object", Bucket=bucket, Key=key, Body=data)

    def list(self, prefix: str) -> list[str]:
        """The URLs of all objects below a prefix, in order."""
        scheme, bucket, key = split(prefix)
        if scheme == "file":
            paths = [Path(key)] if Path(key).is_file() else sorted(Path(key).rglob("*"))
            return [path.as_uri() for path in paths if path.is_file()]
        pages = self.aws.pages("s3", "list_objects_v2", Bucket=bucket, Prefix=key)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return [f"s3://{bucket}/{name}" for name in keys]

    def unpack(self, url: str, folder: Path) -> Path:
        """Unpack a .tar.gz into a folder, as SageMaker does before the container starts."""
        with tempfile.TemporaryDirectory() as scratch:
            path = self._local_copy(url, Path(scratch))
            try:
                with tarfile.open(path) as archive:
                    archive.extractall(folder, filter="data")
            except tarfile.TarError as error:
                raise ConfigError([f"{url}: not a usable .tar.gz: {error}"]) from error
        return folder

    def copy_prefix(self, prefix: str, folder: Path) -> Path:
        """Lay the objects below a prefix out under a folder; their keys become paths."""
        scheme, _, key = split(prefix)
        if scheme == "file" and Path(key).is_dir():
            return Path(key)  # the container only reads it
        names = self.list(prefix)
        if not names:
            raise NotFound(f"{prefix}: no objects under this prefix")
        for name in names:
            relative = name.removeprefix(prefix).lstrip("/") or Path(name).name
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(self._local_copy(name, target.parent), target)
        return folder

    @property
    def aws(self) -> Aws:
        """The AWS side."""
        self._aws = self._aws or self._connect()
        return self._aws

    def _local_copy(self, url: str, folder: Path) -> Path:
        scheme, bucket, key = split(url)
        if scheme == "file":
            if not Path(key).is_file():
                raise NotFound(f"{url}: no such file")
            return Path(key)
        path = folder / "download"
        self.aws.download(bucket, key, path)
        return path


def split(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and key (or path) of a URL. Raises ConfigError for other schemes."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        return "file", "", urllib.parse.unquote(parts.path)
    if parts.scheme == "s3" and parts.netloc:
        # A key may hold `?` and `#`, so it is not what a URL parser calls the path.
        return "s3", parts.netloc, url.removeprefix(f"s3://{parts.netloc}").lstrip("/")
    raise ConfigError([f"{url}: must be s3://bucket/key or file:///path"])


def join(prefix: str, name: str) -> str:
    """A name below a prefix."""
    return f"{prefix.rstrip('/')}/{name.lstrip('/')}"
