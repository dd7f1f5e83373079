"""The only module that calls AWS: calls go through `Aws`, which translates AWS's errors.

Credentials, region and endpoints come from boto3's own chain (AWS_PROFILE, AWS_ENDPOINT_URL_...).
boto3 is slow to import, so the first connection imports it: `--help` needs none.
"""

import functools
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import botocore.exceptions as aws_errors

from sagemaker_deploy.errors import (
    AccessDenied,
    AwsError,
    ConfigError,
    DeployError,
    NotFound,
    QuotaExceeded,
    Throttled,
)

# boto3 retries throttling and lost connections itself; `adaptive` also slows down.
RETRIES = {"mode": "adaptive", "max_attempts": 8}
# A plan can do without the answer.
FEW_RETRIES = {"mode": "standard", "max_attempts": 2}
OPTIONAL = {"service-quotas"}
# SageMaker ends an invocation after 60 s and a stream after 8 minutes; these timeouts are longer,
# so that its error arrives first.
INVOKE_READ_TIMEOUT_S = 70
STREAM_READ_TIMEOUT_S = 500

QUOTA_CODES = {"ResourceLimitExceeded", "LimitExceededException", "ServiceQuotaExceededException"}
THROTTLE_CODES = {"ThrottlingException", "Throttling", "TooManyRequestsException", "SlowDown"}
DENIED_CODES = {"AccessDeniedException", "AccessDenied", "UnauthorizedOperation", "403"}
MISSING_CODES = {"NoSuchBucket", "NoSuchKey", "404", "ResourceNotFoundException", "NoSuchEntity"}
MISSING_WORDS = ("could not find", "does not exist", "not found", "no such")


class Aws:
    """boto3 clients of one region, created on first use."""

    def __init__(self, region: str | None = None, profile: str | None = None) -> None:
        import boto3

        try:
            self._session = boto3.Session(region_name=region, profile_name=profile)
        except aws_errors.ProfileNotFound as error:
            raise ConfigError([f"profile: {error}"]) from error
        if not self._session.region_name:
            raise ConfigError(["region: not set; use --region, `region:` or AWS_DEFAULT_REGION"])
        self._profile = profile
        self._clients: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()  # boto3's sessions are not safe in threads, its clients are

    @property
    def region(self) -> str:
        """The region of every call."""
        return str(self._session.region_name)

    @functools.cached_property
    def account(self) -> str:
        """The account id of the credentials."""
        return str(self.call("sts", "get_caller_identity")["Account"])

    @functools.cached_property
    def credentials(self) -> Any:
        """botocore's credentials, which refresh themselves. Raises AccessDenied without any."""
        credentials = self._session.get_credentials()
        if credentials is None:
            raise translated(aws_errors.NoCredentialsError(), "signing")
        return credentials

    @property
    def ca_bundle(self) -> str:
        """The file of trusted certificates: AWS_CA_BUNDLE, the profile's, or botocore's own."""
        import botocore.httpsession
        import botocore.session

        session = botocore.session.Session(profile=self._profile)
        bundle = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        return str(bundle or botocore.httpsession.where())

    def endpoint_url(self, service: str) -> str:
        """Return the URL of a service: the region's, or that of AWS_ENDPOINT_URL_..."""
        return str(self._client(service).meta.endpoint_url)

    def call(
        self, service: str, operation: str, read_timeout_s: int = 60, **params: Any
    ) -> dict[str, Any]:
        """Call an operation by boto3's name. Raises AwsError or a subclass."""
        try:
            result = getattr(self._client(service, read_timeout_s), operation)(**params)
        except (aws_errors.BotoCoreError, aws_errors.ClientError) as error:
            raise translated(error, f"{service} {operation}") from error
        return dict(result)

    def pages(self, service: str, operation: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Yield every page of a listing."""
        try:
            yield from self._client(service).get_paginator(operation).paginate(**params)
        except (aws_errors.BotoCoreError, aws_errors.ClientError) as error:
            raise translated(error, f"{service} {operation}") from error

    def stream_events(self, events: Any) -> Iterator[bytes]:
        """Yield the bytes of InvokeEndpointWithResponseStream's event stream."""
        try:
            for event in events:
                yield event["PayloadPart"]["Bytes"]
        except (aws_errors.BotoCoreError, aws_errors.ClientError) as error:
            raise translated(error, "the response stream") from error

    def upload(self, path: Path, bucket: str, key: str) -> None:
        """Upload a file to S3, in parts if it is large."""
        try:
            self._client("s3").upload_file(str(path), bucket, key)
        except Exception as error:  # boto3's transfer wraps several families
            raise translated(error, f"upload to s3://{bucket}/{key}") from error

    def download(self, bucket: str, key: str, path: Path) -> None:
        """Download an object from S3 to a file."""
        try:
            self._client("s3").download_file(bucket, key, str(path))
        except (aws_errors.BotoCoreError, aws_errors.ClientError) as error:
            raise translated(error, f"download of s3://{bucket}/{key}") from error

    def _client(self, service: str, read_timeout_s: int = 60) -> Any:
        import botocore.config

        key = (service, read_timeout_s)
        with self._lock:
            if key not in self._clients:
                retries = FEW_RETRIES if service in OPTIONAL else RETRIES
                config = botocore.config.Config(retries=retries, read_timeout=read_timeout_s)
                self._clients[key] = self._session.client(service, config=config)
            return self._clients[key]


def translated(error: Exception, doing: str) -> DeployError:
    """Translate an AWS exception to a DeployError: one line, with a remedy if it is known."""
    if isinstance(error, aws_errors.ClientError):
        return _refusal(error.response, doing)
    if isinstance(error, aws_errors.NoCredentialsError | aws_errors.PartialCredentialsError):
        hint = (
            "run `aws configure`, set AWS_PROFILE, or use `sagemaker_deploy local`; "
            "`plan --offline` needs none"
        )
        return AccessDenied(f"{doing}: no AWS credentials", hint=hint)
    if isinstance(error, aws_errors.EndpointConnectionError | aws_errors.ConnectTimeoutError):
        hint = "check the network, the region and the AWS_ENDPOINT_URL... variables"
        return AwsError(f"{doing}: {error}", hint=hint)
    if isinstance(error, aws_errors.ParamValidationError):
        problems = str(error).replace("Parameter validation failed:", "").strip().splitlines()
        return ConfigError([f"{doing}: {problem.strip()}" for problem in problems])
    return AwsError(f"{doing}: {error}")


def _refusal(response: Mapping[str, Any], doing: str) -> DeployError:
    code = str(response.get("Error", {}).get("Code", ""))
    message = str(response.get("Error", {}).get("Message", "")).strip()
    text = f"{doing}: {message or 'refused'} ({code})"
    if code in QUOTA_CODES:
        hint = "ask for more at Service Quotas > Amazon SageMaker, or take another instance type"
        return QuotaExceeded(text, hint=hint, code=code)
    if code in THROTTLE_CODES:
        return Throttled(text, hint="AWS still throttles after 8 tries; try again", code=code)
    if code in DENIED_CODES:
        hint = "`sagemaker_deploy plan` prints the permissions that a deployment needs"
        return AccessDenied(text, hint=hint, code=code)
    if code in MISSING_CODES or any(word in message.lower() for word in MISSING_WORDS):
        return NotFound(text)
    return AwsError(text, code=code, fields=response)
