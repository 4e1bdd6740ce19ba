"""Chromium without a screen, spoken to through its DevTools protocol over two pipes: no package is needed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BINARY = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
          "--disable-extensions", "--disable-background-networking", "--window-size=1400,950")  # fmt: skip
KEYS = {
    "Enter": 13,
    "Escape": 27,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Tab": 9,
}


class Browser:
    """One page of one browser. `events` holds what the browser reported: requests, messages, exceptions."""

    seconds = 60.0
    """How long to wait for the browser, and for what `wait` waits for."""

    def __enter__(self) -> Browser:
        self.folder = tempfile.mkdtemp()
        (theirs, self._write), (self._read, other) = os.pipe(), os.pipe()
        command = " ".join(
            [f"exec {BINARY}", *_FLAGS, f"--user-data-dir={self.folder}", f"3<&{theirs}", f"4>&{other}"]
        )
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(theirs, other),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(other)
        self._pending, self._numbers, self._session = b"", itertools.count(1), None
        self.events: list[dict[str, Any]] = []
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
            self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One command of the protocol and its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + self.seconds
        while b"\0" not in self._pending:
            ready = select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0]
            data = os.read(self._read, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self._pending += data
        first, _, self._pending = self._pending.partition(b"\0")
        return json.loads(first)

    def open(self, path: Path, link: str = "") -> None:
        """Load a file as a page of its own and wait until it has run."""
        self.call("Page.navigate", url="about:blank")
        self.wait("document.readyState === 'complete' && location.href === 'about:blank'")
        self.call("Page.navigate", url=path.as_uri() + link)
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def frames(self) -> list[str]:
        """Frames that the browser keeps apart, as it does sandboxed ones, the oldest first: see `inside`."""
        self.read("0")  # hears what was reported
        told = [e["params"] for e in self.events if e.get("method") == "Target.attachedToTarget"]
        gone = [
            e["params"]["sessionId"] for e in self.events if e.get("method") == "Target.detachedFromTarget"
        ]
        found = [p["sessionId"] for p in told if p["targetInfo"]["type"] == "iframe"]
        return [session for session in found if session not in gone]

    @contextlib.contextmanager
    def inside(self, frame: str) -> Iterator[None]:
        """A context in which `read` and `wait` are for a frame; places are those in it."""
        outside, self._session = self._session, frame
        try:
            self.call("Log.enable")
            yield
        finally:
            self._session = outside

    def read(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + self.seconds
        while not self.read(expression):
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.02)

    def click(self, x: float, y: float) -> None:
        """A real click, as if with a mouse, at a place in the window."""
        where = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.call("Input.dispatchMouseEvent", type="mousePressed", **where)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **where)

    def click_on(self, selector: str) -> None:
        """A real click in the middle of an element."""
        query = f"document.querySelector({json.dumps(selector)})"
        self.read(f"{query}.scrollIntoView({{block: 'nearest'}})")
        box = self.read(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({query}.getBoundingClientRect())")
        self.click(*box)

    def press(self, key: str) -> None:
        """A key, by its name in KEYS or as one sign."""
        code = KEYS.get(key, ord(key[0].upper()))
        text = {"text": key} if key not in KEYS else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def requests(self) -> list[str]:
        """Addresses that were asked for."""
        return [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, exceptions, violations of the policy."""
        found = [e for e in self.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
        return [json.dumps(event["params"]) for event in found]
