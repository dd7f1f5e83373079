"""A container that misbehaves on request; it listens on SAGEMAKER_BIND_TO_PORT.

The JSON body says what to do: {"status", "sleep_s", "pieces", "gap_s", "break", "headers"}. Without
any it answers with the headers it got.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status = 500 if os.environ.get("SICK") else 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        wish = json.loads(body) if body.startswith(b"{") else {}
        time.sleep(wish.get("sleep_s", 0))
        self.send_response(wish.get("status", 200))
        for name, value in wish.get("headers", {}).items():
            self.send_header(name, value)
        if "pieces" in wish:
            self.stream(wish)
            return
        answer = wish.get("answer") or json.dumps(self.seen())
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def seen(self):
        return {name.lower(): value for name, value in self.headers.items()} | {"path": self.path}

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
