"""A container that answers `/invocations` as the image in VENDOR does: tgi, generate, lmi or vllm.

`tgi` has the messages API, `generate` is TGI without it. Answers are "one two three". A body's text
can ask for faults: `fail 429 2 name` answers 429 to the first two requests with that name,
`slow S` waits S seconds between tokens, `break` breaks the stream off, `cut NAME` does once.
"""

import json
import os
import re
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VENDOR = os.environ.get("VENDOR", "tgi")
WORDS = ("one", " two", " three")
ROUTE = re.compile(r"route=([^,;]*)")
failures = Counter()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.whole({})

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"])).decode()
        body = json.loads(raw)
        if self.is_faulty(raw):
            return
        route = ROUTE.search(self.headers.get("X-Amzn-SageMaker-Custom-Attributes", ""))
        path = route[1] if route and VENDOR == "vllm" else ""
        if path == "/tokenize":
            self.whole({"tokens": [1], "count": 1})
        elif path == "/v1/embeddings":
            self.whole({"object": "list", "data": [{"index": 0, "embedding": [0.5]}]})
        elif "messages" in body and VENDOR != "generate":
            self.chat(body, raw)
        elif path == "/v1/completions":
            self.completions(body, raw)
        elif VENDOR == "tgi":
            self.refuse("messages")
        elif VENDOR == "generate" and "inputs" not in body:
            self.refuse("inputs")
        elif "inputs" not in body:
            self.whole({"error": "missing field `inputs`", "error_type": "validation"}, 422)
        elif isinstance(body["inputs"], list):
            self.whole([[0.5, 0.25] for _ in body["inputs"]])
        else:
            self.generate(body, raw)

    def is_faulty(self, raw):
        if fault := re.search(r"fail (\d+) (\d+) (\w+)", raw):
            failures[fault[3]] += 1
            if failures[fault[3]] <= int(fault[2]):
                self.whole({"error": "not now", "error_type": "overloaded"}, int(fault[1]))
                return True
        return False

    def chat(self, body, raw):
        head = {"id": "chatcmpl-1", "created": 1, "model": "served", "system_fingerprint": "f"}
        usage = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(WORDS)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.whole(head | {"object": "chat.completion", "choices": [choice], "usage": usage})
            return
        head["object"] = "chat.completion.chunk"
        deltas = [({"role": "assistant", "content": word}, None) for word in WORDS]
        if body.get("tools"):
            call = {"index": 0, "id": "c1", "type": "function"}
            first = call | {"function": {"name": "get_weather", "arguments": '{"city":'}}
            rest = {"index": 0, "function": {"arguments": ' "Paris"}'}}
            deltas = [({"tool_calls": [part]}, None) for part in (first, rest)]
        deltas.append(({}, "tool_calls" if body.get("tools") else "stop"))
        events = [
            head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            for delta, reason in deltas
        ]
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append(head | {"choices": [], "usage": usage})
        self.stream(events, raw, done=True)

    def completions(self, body, raw):
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "served"}
        events = []
        for number, word in enumerate(WORDS):
            reason = "stop" if number == 2 else None
            choice = {"index": 0, "text": word, "token_ids": [number + 1], "finish_reason": reason}
            events.append(head | {"choices": [choice]})
        usage = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
        self.stream([*events, head | {"choices": [], "usage": usage}], raw, done=True)

    def generate(self, body, raw):
        text = "".join(WORDS)
        if not body.get("stream"):
            answer = {"generated_text": text}
            self.whole(answer if VENDOR == "lmi" else [answer])
            return
        logprob = "log_prob" if VENDOR == "lmi" else "logprob"
        events = []
        for number, word in enumerate(WORDS):
            token = {"id": number + 1, "text": word, logprob: -0.5, "special": False}
            events.append({"index": number + 1, "token": token, "generated_text": None})
        details = {"finish_reason": "eos_token", "generated_tokens": 3, "input_length": 4}
        events[-1] |= {"generated_text": text, "details": details}
        self.stream(events, raw, done=False)

    def refuse(self, name):
        # TGI before 3.0 answers in plain text.
        text = "Failed to deserialize the JSON body into the target type: missing field "
        self.send(f"{text}`{name}` at line 1 column 70".encode(), 422, "text/plain; charset=utf-8")

    def whole(self, answer, status=200):
        self.send(json.dumps(answer).encode(), status, "application/json")

    def send(self, data, status, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, events, raw, *, done):
        slow = re.search(r"slow ([\d.]+)", raw)
        self.send_response(200)
        lines = VENDOR == "lmi" and not done
        kind = "application/jsonlines" if lines else "text/event-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        texts = [json.dumps(event) + "\n" for event in events]
        if not lines:
            texts = [f"data:{text}\n" for text in texts] + ["data: [DONE]\n\n"] * done
        for number, text in enumerate(texts):
            data = text.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            if number == 0 and self.breaks_off(raw):
                self.close_connection = True
                return
            time.sleep(float(slow[1]) if slow else 0)
        self.wfile.write(b"0\r\n\r\n")

    def breaks_off(self, raw):
        if once := re.search(r"cut (\w+)", raw):
            failures[once[1]] += 1
            return failures[once[1]] == 1
        return "break" in raw


class Server(ThreadingHTTPServer):
    request_queue_size = 128


if __name__ == "__main__":
    port = int(os.environ["SAGEMAKER_BIND_TO_PORT"])
    Server(("127.0.0.1", port), Handler).serve_forever()
