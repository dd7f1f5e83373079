"""InvokeEndpointAsync: payloads from storage through the container, results to storage.

A call waits until its endpoint has a free slot (MaxConcurrentInvocationsPerInstance) or its time
to live is over. Output and failure files have the service's names.
"""

import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

from sagemaker_deploy.errors import DeployError
from sagemaker_deploy.local import refusals
from sagemaker_deploy.local.containers.storage import Storage, join
from sagemaker_deploy.local.invocations.calls import Call, Runtime

DEFAULT_CONCURRENCY = 4
DEFAULT_TTL_S = 21_600
DEFAULT_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Ticket:
    """The immediate response to the client."""

    inference_id: str
    output_url: str
    failure_url: str | None


class AsyncQueue:
    """Runs one thread for each queued call; the queue's length is limited per endpoint."""

    def __init__(self, runtime: Runtime, storage: Storage) -> None:
        self._runtime = runtime
        self._storage = storage
        self._slots: dict[tuple[str, int], threading.Semaphore] = {}
        self._lock = threading.Lock()

    def submit(self, call: Call) -> Ticket:
        """Queue a call. Raises Refusal."""
        location = call.fields.get("InputLocation")
        if bool(location) == bool(call.body):
            raise refusals.validation("Give either InputLocation or Body.")
        config = call.target.config["AsyncInferenceConfig"]
        ticket = _ticket(call, config["OutputConfig"])
        slots = self._slots_of(call.target.endpoint, config.get("ClientConfig", {}))
        threading.Thread(target=self._run, args=(call, ticket, slots), daemon=True).start()
        return ticket

    def _slots_of(self, endpoint: str, client: dict[str, Any]) -> threading.Semaphore:
        count = client.get("MaxConcurrentInvocationsPerInstance", DEFAULT_CONCURRENCY)
        with self._lock:
            return self._slots.setdefault((endpoint, count), threading.Semaphore(count))

    def _run(self, call: Call, ticket: Ticket, slots: threading.Semaphore) -> None:
        deadline = time.monotonic() + call.fields.get("RequestTTLSeconds", DEFAULT_TTL_S)
        if not slots.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self._fail(ticket, "The request stayed in the queue beyond its time to live.")
            return
        try:
            self._answer(call, ticket)
        except refusals.Refusal as refusal:
            self._fail(ticket, refusal.message)
        except DeployError as error:
            self._fail(ticket, error.message)
        finally:
            slots.release()

    def _answer(self, call: Call, ticket: Ticket) -> None:
        location = call.fields.get("InputLocation")
        body = self._storage.read(location) if location else call.body
        timeout_s = call.fields.get("InvocationTimeoutSeconds", DEFAULT_TIMEOUT_S)
        headers = dict(call.headers)
        if location and "ContentType" not in call.fields:
            headers["Content-Type"] = self._storage.content_type(location)
        whole = Call(call.target, headers, call.fields, body)
        answer = self._runtime.invoke(whole, timeout_s)
        self._storage.write(ticket.output_url, answer.get_data())

    def _fail(self, ticket: Ticket, message: str) -> None:
        if ticket.failure_url:
            self._storage.write(ticket.failure_url, message.encode())


def _ticket(call: Call, output: dict[str, Any]) -> Ticket:
    inference_id = call.fields.get("InferenceId", str(uuid.uuid4()))
    name = call.fields.get("S3OutputPathExtension", f"{uuid.uuid4()}.out")
    failure = output.get("S3FailurePath")
    failure_url = join(failure, f"{uuid.uuid4()}-error.out") if failure else None
    return Ticket(inference_id, join(output["S3OutputPath"], name), failure_url)
