"""gunicorn's configuration; its values come from Settings."""

import gc
import json
import os
import secrets
import signal
import socket

import gunicorn.util

from container import logs
from container.frontend.gunicorn_worker import ConnectionWorker
from container.ipc.heartbeat import Heartbeat
from container.ipc.parent_watch import watch_parent
from container.settings.process_env import HEARTBEAT_FD, LISTENER_FD, SUPERVISOR_PID
from container.settings.settings import Settings

_settings = Settings.from_environ(os.environ)
wsgi_app = "container.frontend.wsgi:application()"
bind = f"fd://{os.environ[LISTENER_FD]}"
# The models of a multi-model endpoint are known to one process.
workers = 1 if _settings.sagemaker.is_multi_model else _settings.server.num_frontends
worker_class = "container.frontend.gunicorn_worker.ConnectionWorker"
worker_connections = _settings.server.max_connections
# Longer than SageMaker and load balancers keep idle connections, so that they close first. The next
# request's headers must have come by then.
keepalive = 75
# A worker whose event loop is stuck for this long is replaced. Long answers are not affected.
timeout = (
    max(30, _settings.server.heartbeat_timeout_s) if _settings.server.heartbeat_timeout_s else 0
)
# The backends have drained before the supervisor stops gunicorn; only sending remains.
SENDING_S = 2
graceful_timeout = SENDING_S
control_socket_disable = True
# No proxy rewrites paths here: SCRIPT_NAME and PATH_INFO are headers like any others.
forwarder_headers = ""
accesslog = None
# An error quotes at most this many characters of a client's request.
MESSAGE_LENGTH = 150
loglevel = "warning"
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": _settings.observability.log_level.upper(), "handlers": []},
    "loggers": {
        "gunicorn.error": {"level": "WARNING", "propagate": True, "handlers": []},
        "gunicorn.access": {"level": "WARNING", "propagate": True, "handlers": []},
    },
}


def answer_in_json() -> None:
    """Make gunicorn send JSON instead of its page of HTML, in this process and its children."""
    gunicorn.util.write_error = _write_error


def _write_error(sock: socket.socket, status_int: int, reason: str, mesg: str) -> None:
    """Send an error and close; takes the place of gunicorn.util.write_error."""
    if status_int == 501:  # an unknown transfer coding is the client's fault
        status_int, reason = 400, "Bad Request"
    error_type = "validation" if status_int < 500 else "internal"
    message = (mesg or reason)[:MESSAGE_LENGTH]
    body = json.dumps({"error": message, "error_type": error_type}).encode()
    head = (
        f"HTTP/1.1 {status_int} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nx-request-id: req_{secrets.token_hex(12)}\r\n\r\n"
    )
    gunicorn.util.write_nonblock(sock, head.encode("latin1") + body)


answer_in_json()


if _settings.sagemaker.is_multi_model:
    wsgi_app = "container.frontend.wsgi:multi_model_application()"
    # Its worker drains the models itself, before it stops to accept connections.
    graceful_timeout = _settings.server.drain_s + SENDING_S


def configure_logs() -> None:
    """Log in this server's form."""
    logs.configure(
        _settings.observability.log_level, json_output=_settings.observability.json_output
    )


configure_logs()


def on_starting(_server: object) -> None:
    """Configure the logs again, since gunicorn has just taken the handlers away."""
    configure_logs()


def when_ready(_server: object) -> None:
    """Show the supervisor that this process runs; stop it when the supervisor dies."""
    if (heartbeat := Heartbeat.from_environ(os.environ, HEARTBEAT_FD)) is not None:
        heartbeat.mark(is_ready=True)
        heartbeat.start()
    watch_parent(int(os.environ[SUPERVISOR_PID]), lambda: os.kill(os.getpid(), signal.SIGTERM))


def post_fork(_server: object, worker: ConnectionWorker) -> None:
    """Set the times of a worker: short after a drain, and that of a drain without a master."""
    worker.cfg.set("graceful_timeout", SENDING_S)
    worker.orphan_drain_s = _settings.server.drain_s
    gc.disable()  # it imports the app now, without garbage; see container/garbage.py


def post_worker_init(_worker: ConnectionWorker) -> None:
    """Collect garbage from now on, but not among what was imported."""
    gc.freeze()
    gc.enable()
