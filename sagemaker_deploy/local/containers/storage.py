"""Storage of model data and payloads: local `file://` paths, `s3://` with boto3's credentials.

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
    """Reads and writes by URL. `connect` creates the AWS clients at the first s3:// URL."""

    def __init__(self, connect: Callable[[], Aws]) -> None:
        self._connect = connect
        self._aws: Aws | None = None

    def read(self, url: str) -> bytes:
        """Read the bytes of one object. Raises NotFound."""
        with tempfile.TemporaryDirectory() as folder:
            path = self._local_copy(url, Path(folder))
            return path.read_bytes()

    def content_type(self, url: str) -> str:
        """Return the content type that an object was stored with; a file has none."""
        scheme, bucket, key = split(url)
        if scheme == "file":
            return "application/octet-stream"
        return str(self.aws.call("s3", "head_object", Bucket=bucket, Key=key)["ContentType"])

    def write(self, url: str, data: bytes) -> None:
        """Store one object; creates folders as needed."""
        scheme, bucket, key = split(url)
        if scheme == "file":
            path = Path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            return
        self.aws.call("s3", "put_object", Bucket=bucket, Key=key, Body=data)

    def list(self, prefix: str) -> list[str]:
        """List the URLs of all objects below a prefix, in order."""
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
        """Copy the objects below a prefix to a folder; their keys become paths."""
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
        """The AWS clients."""
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
    """Split a URL into scheme, bucket and key (or path). Raises ConfigError for other schemes."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        return "file", "", urllib.parse.unquote(parts.path)
    if parts.scheme == "s3" and parts.netloc:
        # A key may contain `?` and `#`, so it is not the path component of a URL parser.
        return "s3", parts.netloc, url.removeprefix(f"s3://{parts.netloc}").lstrip("/")
    raise ConfigError([f"{url}: must be s3://bucket/key or file:///path"])


def join(prefix: str, name: str) -> str:
    """Join a prefix and a name."""
    return f"{prefix.rstrip('/')}/{name.lstrip('/')}"
