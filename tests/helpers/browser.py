"""Chromium without a window, driven by the DevTools protocol through a pipe; nothing but the standard library."""

import json
import os
import select
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The browser of this machine, None without one."""
OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
)


class Browser:
    """A browser with one tab at a time, whose every request, message and error is kept.

    Args:
        home: an empty folder for its profile.
    """

    def __init__(self, home: Path) -> None:
        assert CHROMIUM is not None
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={home}", "about:blank"]
        # Of the browser 3 is what it reads, 4 what it writes; a shell moves them there.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._out)
            os.close(self._in)

    @contextmanager
    def tab(self, width: int, *, dark: bool = False) -> Iterator[None]:
        """A tab that knows nothing of those before it.

        Args:
            width: of its window, CSS pixels.
            dark: whether it asks for dark pages.
        """
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            self.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
            )
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            self.call("Emulation.setEmulatedMedia", features=[scheme])
            yield
        finally:
            self._session = None
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a method of the protocol.

        Raises:
            RuntimeError: the browser refuses it.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next(30)).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, url: str) -> None:
        """Load a page; returns when it and what it loads are there."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.until(lambda: self.events["Page.loadEventFired"])

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, of a promise what it brings."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, true: Any, seconds: float = 20) -> None:
        """Handle what the browser reports until `true()`.

        Raises:
            TimeoutError: it is not within `seconds`.
        """
        end = time.monotonic() + seconds
        while not true():
            self._next(end - time.monotonic())

    def _next(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(seconds, 0))[0]:
                raise TimeoutError("the browser said nothing")
            if not (read := os.read(self._in, 1 << 20)):
                raise RuntimeError(f"the browser ended with exit code {self._process.wait()}")
            self._rest += read
        raw, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(raw)
        if "method" in message:
            self.events[message["method"]].append(message["params"])
        return message
