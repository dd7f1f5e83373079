"""Requests in flight, sixteen at once or one after another, and how each of them ends."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests

NUM_EACH = 8
TIMEOUT_S = 120
GRAMMAR = {"type": "regex", "value": "[a-z ]{4000}"}
# User code that takes its time, without an engine.
HANDLER_PROGRAM = """
import time
def model_fn(model_dir):
    return None
def predict_fn(data, model):
    parts = stream(data)
    if data.get("stream"):
        return parts
    return {"generated_text": "".join(part["part"] for part in parts)}
def stream(data):
    for number in range(data["parts"]):
        time.sleep(0.02)
        yield {"part": f"{data['name']} {number} ", "is_last": number + 1 == data["parts"]}
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: its route and body; `text` reads the text of an answer or event."""

    path: str
    body: dict[str, Any]

    def streamed(self) -> "Kind":
        """Return the same request as a stream."""
        path = "/generate_stream" if self.path == "/generate" else self.path
        return Kind(path, self.body | {"stream": True})


def kinds(num_tokens: int) -> list[Kind]:
    """Return eight requests that touch templates, grammars and the engine."""
    created = []
    for number in range(NUM_EACH):
        words = f"Tell me {number}"
        parameters = {"max_new_tokens": num_tokens, "do_sample": False}
        chat = {"messages": [{"role": "user", "content": words}], "max_tokens": num_tokens}
        match number % 4:
            case 0:
                created.append(Kind("/v1/chat/completions", chat | {"temperature": 0}))
            case 1:
                grammar = {"grammar": GRAMMAR}
                created.append(
                    Kind("/generate", {"inputs": words, "parameters": parameters | grammar})
                )
            case _:
                created.append(Kind("/generate", {"inputs": words, "parameters": parameters}))
    return created


def handler_kinds(num_tokens: int) -> list[Kind]:
    """Return eight requests for HANDLER_PROGRAM."""
    return [Kind("/invocations", {"name": f"{n}", "parts": num_tokens}) for n in range(NUM_EACH)]


class Call(threading.Thread):
    """One request in the background.

    `outcome` is `whole`, `error event`, a status, `cut` (it ended without an end or an error) or
    `no connection`. `text` is what has come of the completion.
    """

    def __init__(self, url: str, kind: Kind, *, is_stream: bool) -> None:
        super().__init__(daemon=True)
        self.is_stream = is_stream
        self.outcome = "running"
        self.text = ""
        self.message = ""
        self.first_at = 0.0
        self.ended_at = 0.0
        self._kind = kind.streamed() if is_stream else kind
        self._url = url + self._kind.path

    def run(self) -> None:
        """Send the request and read all of the answer."""
        try:
            with requests.post(
                self._url, json=self._kind.body, stream=self.is_stream, timeout=TIMEOUT_S
            ) as response:
                self.outcome = self._read(response)
        except requests.exceptions.ReadTimeout:
            self.outcome = "no answer"
        except requests.exceptions.ChunkedEncodingError:
            self.outcome = "cut"
        except requests.exceptions.ConnectionError as error:
            self.outcome = "cut" if "RemoteDisconnected" in repr(error) else "no connection"
            self.message = repr(error)[:200]
        self.ended_at = time.monotonic()

    def _read(self, response: requests.Response) -> str:
        if not response.ok:
            self.message = response.text[:200]
            return str(response.status_code)
        if not self.is_stream:
            self.text = _whole_text(response.json())
            return "whole"
        outcome = "cut"
        for line in response.iter_lines(chunk_size=1):
            if not line.startswith((b"data:", b"{")):
                continue
            if not self.first_at:
                self.first_at = time.monotonic()
            outcome = self._take(line.removeprefix(b"data:").strip(), outcome)
        return outcome

    def _take(self, data: bytes, outcome: str) -> str:
        if data == b"[DONE]":
            return outcome
        event = json.loads(data)
        if "error" in event:
            self.message = str(event)[:200]
            return "error event"
        text, is_last = _event_text(event)
        self.text += text
        return "whole" if is_last else outcome


# Chooses the next request of a client from its number and how many it has sent: the kind of
# request, and whether it is a stream.
Choose = Callable[[int, int], tuple[Kind, bool]]


class Clients:
    """Threads that send requests until they are stopped, and the outcomes by whether streamed.

    `observe` gets a client's number and each request that has ended, in the client's thread.
    """

    def __init__(
        self, url: str, count: int, choose: Choose,
        observe: Callable[[int, Call], None] = lambda _number, _call: None,
    ) -> None:  # fmt: skip
        self.outcomes: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self.messages: set[str] = set()
        self._url = url
        self._choose = choose
        self._observe = observe
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]

    @property
    def num_lost(self) -> int:
        """How many requests were not answered as a whole."""
        return sum(outcomes.total() - outcomes["whole"] for outcomes in self.outcomes.values())

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the running requests, and send no more."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        num_sent = 0
        while not self._is_over.is_set():
            kind, is_stream = self._choose(number, num_sent)
            num_sent += 1
            call = Call(self._url, kind, is_stream=is_stream)
            call.run()
            self.outcomes[is_stream][call.outcome] += 1
            self.messages |= {call.message} - {""}
            self._observe(number, call)


class Load:
    """Sixteen requests at once, against the texts that they have without any fault."""

    def __init__(self, url: str, requested: list[Kind]) -> None:
        self._calls = [
            Call(url, kind, is_stream=is_stream)
            for is_stream in (True, False)
            for kind in requested
        ]

    def start(self) -> None:
        """Send all, and wait until each stream has its first event or has ended."""
        for call in self._calls:
            call.start()
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            if all(call.first_at or call.ended_at for call in self._calls if call.is_stream):
                return
            time.sleep(0.02)

    def join(self) -> None:
        """Wait for all ends."""
        for call in self._calls:
            call.join(TIMEOUT_S + 30)

    def texts(self) -> list[str]:
        """Return the texts in the order of the requests."""
        return [call.text for call in self._calls]

    def outcomes(self, *, is_stream: bool) -> Counter[str]:
        """Count how the streams, or the plain requests, have ended."""
        return Counter(call.outcome for call in self._calls if call.is_stream is is_stream)

    def first_failure_at(self) -> float | None:
        """Return when the first request failed."""
        return min((c.ended_at for c in self._calls if c.outcome != "whole"), default=None)

    def num_lost(self) -> int:
        """Count requests that ended without an answer or an error."""
        lost = ("cut", "no answer", "no connection", "running")
        return sum(call.outcome in lost for call in self._calls)

    def num_wrong(self, expected: list[str]) -> int:
        """Count texts in which a part is missing, changed or there twice."""
        wrong = 0
        for call, text in zip(self._calls, expected, strict=True):
            is_sound = call.text == text if call.outcome == "whole" else text.startswith(call.text)
            wrong += not is_sound
        return wrong

    def messages(self) -> list[str]:
        """Return the different errors."""
        return sorted({call.message for call in self._calls if call.message})


def _whole_text(answer: dict[str, Any]) -> str:
    if "choices" in answer:
        return str(answer["choices"][0]["message"]["content"])
    return str(answer["generated_text"])


def _event_text(event: dict[str, Any]) -> tuple[str, bool]:
    if "part" in event:
        return event["part"], event["is_last"]
    if "choices" in event:
        choice = event["choices"][0]
        return choice["delta"].get("content") or "", choice["finish_reason"] is not None
    return event["token"]["text"], event["generated_text"] is not None
