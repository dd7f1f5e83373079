"""Writes requests and answers to a file, for `sagemaker_deploy replay`."""

import json
import os
import time
from pathlib import Path

from sagemaker_deploy.proxy.plans import ClientRequest
from sagemaker_deploy.proxy.translation.answers import (
    REPLAY_INFO,
    parse_replay_info,
    read_answer,
)

ASKED = f"{REPLAY_INFO}true"


class RequestLog:
    """One line of JSON for each answered request; only the file's owner can read it."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "a")

    def write(
        self, name: str, request: ClientRequest, answer: bytes, attributes: str, started: float
    ) -> None:
        """Write a line; `started` is of the monotonic clock."""
        line = {
            "name": name,
            "path": None if request.path == "/" else request.path,
            "body": request.body,
            "answer": read_answer(answer, request.body),
            "replay_info": parse_replay_info(attributes),
            "latency_s": time.monotonic() - started,
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
