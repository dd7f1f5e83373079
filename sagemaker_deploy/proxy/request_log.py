"""Writes requests and answers to a file, for `sagemaker_deploy replay`."""

import errno
import json
import os
import stat
import threading
import time
from pathlib import Path

from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.proxy.plans import ClientRequest
from sagemaker_deploy.proxy.translation.answers import parse_replay_info, read_answer


class RequestLog:
    """One line of JSON for each answered request; only the file's owner can read it."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it. Raises ConfigError."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._file = os.fdopen(descriptor, "ab", buffering=0)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):  # it may be older, and readable
                os.fchmod(descriptor, 0o600)
        except OSError as error:
            raise ConfigError([f"--record {path}: {error}"]) from error
        self._lock = threading.Lock()

    def write(
        self, name: str, request: ClientRequest, answer: bytes, attributes: str, started: float
    ) -> None:
        """Write a line; `started` is of the monotonic clock. Any thread may call this.

        Raises OSError, and other errors for an answer of an unknown form.
        """
        line = {
            "name": name,
            "path": None if request.path == "/" else request.path,
            "body": request.body,
            "answer": read_answer(answer, request.body),
            "replay_info": parse_replay_info(attributes),
            "latency_s": time.monotonic() - started,
        }
        data = (json.dumps(line) + "\n").encode()
        with self._lock:
            written = self._file.write(data) or 0
            if written < len(data):  # the next line must not follow half a line
                os.ftruncate(self._file.fileno(), os.fstat(self._file.fileno()).st_size - written)
                raise OSError(errno.ENOSPC, "no space for the line")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
