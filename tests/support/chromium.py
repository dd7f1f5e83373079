"""Headless Chromium, driven over Chrome's DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
START_WITHIN_S = 60
WITHIN_S = 30.0
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39}
Json = dict[str, Any]


def find_chromium() -> str:
    """Return the browser's path; the test fails, with the remedy, where there is none."""
    named = os.environ.get("CHROMIUM")
    executable = named or next(filter(None, map(shutil.which, (*NAMES, MAC))), None)
    if executable is None:
        pytest.fail(
            "no Chromium: install it with `make browser` (Debian, as root), or set CHROMIUM to a "
            "Chrome or Chromium; `pytest -m 'not browser'` leaves these tests out",
            pytrace=False,
        )
    return executable


class Page:
    """A tab. Raises AssertionError for what does not happen in time, or an exception in it."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = count(1)
        self.problems: list[str] = []  # exceptions, console errors, breaches of the content policy
        self.urls: list[str] = []  # everything that was requested
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Json:
        """Send a command of the protocol and return its result."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=WITHIN_S))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._record(message)

    def open(self, url: str) -> None:
        """Load a page."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of an expression, awaited if it is a promise."""
        result = self.call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, within_s: float = WITHIN_S) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + within_s
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > until:
                text = self.run("document.body.innerText")
                pytest.fail(f"never true: {condition}\n{self.problems}\n{text}")
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click an element that can be seen."""
        shown = f"document.querySelector({json.dumps(selector)})?.checkVisibility()"
        self.wait(shown)
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, text: str) -> None:
        """Put a text into a field, as if it had been typed."""
        self.run(f"""(() => {{
            const input = document.querySelector({json.dumps(selector)});
            input.focus();
            input.value = {json.dumps(text)};
            input.dispatchEvent(new Event("input", {{ bubbles: true }}));
            input.dispatchEvent(new Event("change", {{ bubbles: true }}));
        }})()""")

    def press(self, key: str) -> None:
        """Press a key and release it."""
        fields: Json = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **fields, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def text(self, selector: str) -> str:
        """Return what an element shows."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def resize(self, width: int, height: int) -> None:
        """Give the window a size, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, scheme: str) -> None:
        """Let the system prefer a colour scheme: light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def accessible(self) -> list[tuple[str, str]]:
        """Return the role and the name of every node that a screen reader meets."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored")
        ]

    def screenshot(self, path: Path) -> None:
        """Write what can be seen as a PNG file."""
        shot = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def _record(self, message: Json) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.problems.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A browser with one tab, its profile in a folder."""
    command = [
        find_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions",
        "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        with connect(_tab(process, folder), max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(20)


def _tab(process: "subprocess.Popen[bytes]", folder: Path) -> str:
    """Return the address of the tab's socket, once the browser listens."""
    until = time.monotonic() + START_WITHIN_S
    while time.monotonic() < until:
        assert process.poll() is None, (folder / "log").read_text(errors="replace")
        port_file = folder / "DevToolsActivePort"
        if port_file.exists() and port_file.read_text().count("\n"):
            port = port_file.read_text().splitlines()[0]
            tabs = requests.get(f"http://127.0.0.1:{port}/json/list", timeout=10).json()
            for tab in tabs:
                if tab["type"] == "page":
                    return str(tab["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError(f"Chromium never listened:\n{(folder / 'log').read_text()}")
