"""Signs requests to the runtime API with the caller's credentials (Signature Version 4)."""

import asyncio
from collections.abc import Mapping
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest

SIGNING_NAME = "sagemaker"


class Signer:
    """Signs with credentials that refresh themselves; `credentials` are botocore's."""

    def __init__(self, credentials: Any, region: str) -> None:
        self._credentials = credentials
        self._region = region

    async def sign(self, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        """Return the headers with a signature.

        Works in a thread: a refresh of credentials and the hash of a large body take a while.
        """
        return await asyncio.to_thread(self._sign, url, headers, body)

    def _sign(self, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        request = AWSRequest("POST", url, headers=dict(headers), data=body)
        frozen = self._credentials.get_frozen_credentials()
        SigV4Auth(frozen, SIGNING_NAME, self._region).add_auth(request)
        return dict(request.headers.items())
