"""Stands for everything outside of this machine, and notes what was asked of it."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Trap:
    """A proxy, and an endpoint of AWS, that answers nothing; `asked` has the requests."""

    def __init__(self) -> None:
        asked = self.asked = []  # type: list[str]

        class Handler(BaseHTTPRequestHandler):
            def note(self) -> None:
                asked.append(f"{self.command} {self.path}")
                self.send_error(500)

            do_GET = do_POST = do_PUT = do_HEAD = do_CONNECT = note  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def variables(self) -> dict[str, str]:
        """Variables that lead clients here with all that is not on this machine."""
        names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "AWS_ENDPOINT_URL")
        return dict.fromkeys(names, self.url) | {"NO_PROXY": "127.0.0.1,localhost"}

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
