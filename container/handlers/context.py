"""The optional last argument of a user's functions.

Its names are those of multi-model-server's `Context` (`mms/context.py`), which both SageMaker
toolkits use; the batch index of its methods is accepted and ignored.
"""

from pathlib import Path
from typing import Any

INFERENCE_ID = "x-amzn-sagemaker-inference-id"  # header names of an invocation are in lower case


class Context:
    """The headers and the response of an invocation, and properties of the process."""

    def __init__(
        self, model_dir: Path, gpu_id: int | None, headers: dict[str, str] | None = None
    ) -> None:
        self.system_properties: dict[str, Any] = {"model_dir": str(model_dir), "gpu_id": gpu_id}
        self.manifest: dict[str, Any] = {}
        self.headers = dict(headers or {})
        self.response_status = 200
        self.response_content_type: str | None = None
        self.response_headers: dict[str, str] = {}

    def get_all_request_header(self, _index: int = 0) -> dict[str, str]:
        """Return all headers of the request, names in lower case."""
        return self.headers

    def get_request_header(self, _index: int, key: str) -> str | None:
        """Return a header of the request; case does not matter."""
        return self.headers.get(key.lower())

    def get_request_id(self, _index: int = 0) -> str:
        """Return SageMaker's Inference-Id, or an empty string."""
        return self.headers.get(INFERENCE_ID, "")

    def set_response_status(self, code: int = 200, phrase: str = "", _index: int = 0) -> None:
        """Choose the answer's status."""
        self.response_status = int(code)

    def set_response_content_type(self, _index: int, value: str) -> None:
        """Choose the answer's content type."""
        self.response_content_type = value

    def set_response_header(self, _index: int, key: str, value: str) -> None:
        """Add a header to the answer."""
        self.response_headers[key] = value
