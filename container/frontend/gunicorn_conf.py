"""gunicorn's configuration; values come from Settings, so there is no second way to set them."""

import os
import signal
import threading
import time

from container import logs
from container.frontend import http_errors
from container.settings import SUPERVISOR_PID, Settings

_settings = Settings.from_environ(os.environ)
logs.configure(_settings.log_level, json_output=_settings.json_output)

http_errors.answer_in_json()

wsgi_app = "container.frontend.wsgi:application()"
if _settings.is_multi_model:
    wsgi_app = "container.frontend.wsgi:multi_model_application()"
bind = f"{_settings.host}:{_settings.port}"
# The models of a multi-model endpoint are known to one process.
workers = 1 if _settings.is_multi_model else _settings.num_frontends
worker_class = "gevent"
worker_connections = 4096
backlog = 2048
# Longer than SageMaker and load balancers keep idle connections, so that they close first.
keepalive = 75
# A worker whose event loop is stuck for this long is replaced. Long answers are not affected.
timeout = 120
# The engine has drained before gunicorn is told to stop; what remains is sending.
graceful_timeout = 2
control_socket_disable = True
accesslog = None
loglevel = "warning"
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": _settings.log_level.upper(), "handlers": []},
    "loggers": {
        "gunicorn.error": {"level": "WARNING", "propagate": True, "handlers": []},
        "gunicorn.access": {"level": "WARNING", "propagate": True, "handlers": []},
    },
}


def when_ready(_server: object) -> None:
    """Watch the supervisor: without it nobody would ever stop this process."""
    parent = int(os.environ[SUPERVISOR_PID])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
