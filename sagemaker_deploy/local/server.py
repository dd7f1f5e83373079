"""The local endpoint as one HTTP server, composed of control plane, runtime and fleet.

Both APIs share a port; clients find them by AWS_ENDPOINT_URL_SAGEMAKER and
AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME. Request ids and error shapes are AWS's.
"""

import json
import logging
import threading
import uuid
from pathlib import Path

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from sagemaker_deploy.local.containers.fleet import Fleet, Launch
from sagemaker_deploy.local.containers.storage import Storage
from sagemaker_deploy.local.control_plane.control import ControlPlane
from sagemaker_deploy.local.control_plane.endpoints import Endpoints
from sagemaker_deploy.local.control_plane.resources import Resources
from sagemaker_deploy.local.control_plane.transform import Transforms
from sagemaker_deploy.local.invocations import runtime as runtime_api
from sagemaker_deploy.local.invocations.async_queue import AsyncQueue
from sagemaker_deploy.local.invocations.calls import Limits, Runtime
from sagemaker_deploy.local.invocations.multi_model import Models
from sagemaker_deploy.local.refusals import Refusal

log = logging.getLogger(__name__)
WATCH_EVERY_S = 1.0
JSON_CONTENT_TYPE = "application/x-amz-json-1.1"


class LocalSageMaker:
    """The server; `start` returns once it listens, `stop` leaves no process behind."""

    def __init__(
        self,
        launch: Launch,
        storage: Storage,
        log_dir: Path,
        *,
        region: str = "us-east-1",
        limits: Limits | None = None,
    ) -> None:
        resources = Resources(region)
        self.fleet = Fleet(launch, storage, log_dir)
        endpoints = Endpoints(resources, self.fleet)
        self.control = ControlPlane(resources, endpoints, Transforms(resources, self.fleet))
        runtime = Runtime(endpoints, Models(self.fleet), limits or Limits(), region)
        self.app = make_app(self.control, runtime, AsyncQueue(runtime, storage))
        self._endpoints = endpoints
        self._stopped = threading.Event()
        self._server: BaseWSGIServer | None = None

    def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Start serving in a thread and return the URL. Port 0 takes a free port."""
        self._server = make_server(
            host, port, self.app, threaded=True, request_handler=QuietHandler
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        return f"http://{host}:{self._server.server_port}"

    def stop(self) -> None:
        """Stop listening and stop every container."""
        self._stopped.set()
        self.fleet.stop_all()
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def _watch(self) -> None:
        while not self._stopped.wait(WATCH_EVERY_S):
            try:
                self._endpoints.replace_dead()
            except Exception:  # of one look; the next may succeed
                log.exception("local: a look at the containers failed; there will be another")


class QuietHandler(WSGIRequestHandler):
    """Logs to this module's logger, one line per request."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log a request's line and status."""
        log.info("%s %s", getattr(code, "value", code), self.requestline)

    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002 (werkzeug's name)
        """Log werkzeug's message."""
        log.info(message, *args)


def make_app(control: ControlPlane, runtime: Runtime, queue: AsyncQueue) -> Flask:
    """Create the routes of both APIs."""
    app = Flask(__name__)
    app.register_blueprint(runtime_api.blueprint(runtime, queue))

    @app.post("/")
    def act() -> Response:
        runtime_api.check_signed()
        action = request.headers.get("X-Amz-Target", "").removeprefix("SageMaker.")
        output = control.act(action, json.loads(request.get_data() or b"{}"))
        return Response(json.dumps(output), content_type=JSON_CONTENT_TYPE)

    @app.get("/ping")
    def ping() -> Response:
        return Response(status=200)

    @app.errorhandler(Refusal)
    def refused(refusal: Refusal) -> Response:
        if request.path == "/":
            body = {"__type": refusal.code, "message": refusal.message}
            return Response(json.dumps(body), refusal.status, content_type=JSON_CONTENT_TYPE)
        return runtime_api.refusal_response(refusal)

    @app.errorhandler(HTTPException)
    def unknown(error: HTTPException) -> Response:
        message = f"{request.method} {request.path}: {error.name}"
        return runtime_api.refusal_response(
            Refusal(error.code or 500, "UnknownOperationException", message)
        )

    @app.after_request
    def finish(answer: Response) -> Response:
        answer.headers["x-amzn-RequestId"] = str(uuid.uuid4())
        return answer

    return app
