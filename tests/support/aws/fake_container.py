"""A container that misbehaves on request; it listens on SAGEMAKER_BIND_TO_PORT.

The JSON body says what to do: {"status", "sleep_s", "pieces", "gap_s", "break", "headers"}. Without
any it answers with the headers it got.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status = 500 if os.environ.get("SICK") else 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    loaded: ClassVar[dict] = {}  # models or adapters, by name

    def do_DELETE(self):
        self.answer(200 if self.loaded.pop(self.path.split("/")[2], None) else 404, "")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path in ("/models", "/adapters"):
            self.load(json.loads(body))
            return
        if self.headers["Content-Type"] == "application/jsonlines":
            self.answer(200, "".join(f"{line.upper()}\n" for line in body.decode().splitlines()))
            return
        wish = json.loads(body) if body.startswith(b"{") else {}
        time.sleep(wish.get("sleep_s", 0))
        self.send_response(wish.get("status", 200))
        for name, value in wish.get("headers", {}).items():
            self.send_header(name, value)
        if "pieces" in wish:
            self.stream(wish)
            return
        answer = wish.get("answer") or json.dumps(self.seen())
        self.finish_answer(answer)

    def answer(self, status, text):
        self.send_response(status)
        self.finish_answer(text)

    def finish_answer(self, text):
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def load(self, wish):
        name = wish.get("model_name") or wish["name"]
        folder = Path(wish.get("url") or wish["src"])
        if len(self.loaded) >= int(os.environ.get("ROOM", "100")):
            self.answer(507, "no memory")
        elif (folder / "bad").exists():
            self.answer(400, "not a model")
        else:
            self.loaded[name] = sorted(path.name for path in folder.iterdir())
            self.answer(200, "{}")

    def seen(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        return headers | {"path": self.path, "loaded": self.loaded, "env": dict(os.environ)}

    def stream(self, wish):
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in wish["pieces"]:
            data = piece.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            time.sleep(wish.get("gap_s", 0))
        if wish.get("break"):
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")


if __name__ == "__main__":
    port = int(os.environ["SAGEMAKER_BIND_TO_PORT"])
    print("listening", file=sys.stderr, flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
