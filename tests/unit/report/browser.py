"""A headless Chromium, driven over its debugging pipe with nothing but the standard library.

The pipe (file descriptors 3 and 4 of the browser, messages ended by a zero byte) opens no port and needs no client
library. Left out: everything these tests do not ask of a page.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--remote-debugging-pipe")  # fmt: skip
TIMEOUT_S = 60

# Descriptors 3 and 4 are taken by the interpreter itself until the very moment of exec.
LAUNCH = "import os,sys; os.dup2(int(sys.argv[1]),3); os.dup2(int(sys.argv[2]),4); os.execv(sys.argv[3],sys.argv[3:])"


def find_chromium() -> str | None:
    """The browser's path, or ``None``."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One browser process with one page, which records every request, console message and exception."""

    def __init__(self, binary: str, profile: Path) -> None:
        command_read, command_write = os.pipe()
        reply_read, reply_write = os.pipe()
        # Above 9, so that placing one on 3 or 4 cannot overwrite the other.
        inner = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (command_read, reply_write)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(inner[0]), str(inner[1]), binary, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=inner, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for descriptor in (*inner, command_read, reply_write):
            os.close(descriptor)
        self._write, self._read, self._buffer, self._last_id = command_write, reply_read, b"", 0
        self._session: str | None = None
        self._target = ""
        self.events: list[dict[str, Any]] = []

    def open(
        self, page: Path | str, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True
    ) -> None:
        """Load a file or an address in a fresh tab of the given size and theme, and wait until it is loaded."""
        if self._target:
            self.call("Target.closeTarget", browser=True, targetId=self._target)
        self._target = self.call("Target.createTarget", browser=True, url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", browser=True, targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri() if isinstance(page, Path) else page)
        self._wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def screenshot(self, path: Path, full: bool = True) -> Path:
        """A picture of the whole page, or of what the window shows."""
        reply = self.call("Page.captureScreenshot", captureBeyondViewport=full, format="png")
        path.write_bytes(base64.b64decode(reply["data"]))
        return path

    def requests(self) -> list[str]:
        """Addresses of all requests since the page was opened."""
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Exceptions, console messages and browser log entries (a violated content policy among them)."""
        methods = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in methods]

    def call(self, method: str, browser: bool = False, **params: Any) -> dict[str, Any]:
        """One command to the page (or to the browser) and its answer."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": params}
        if not browser and self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._receive()
            if reply.get("id") == self._last_id:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return dict(reply["result"])
            self.events.append(reply)

    def close(self) -> None:
        """End the browser."""
        try:
            self.call("Browser.close", browser=True)
        finally:
            os.close(self._write)
            os.close(self._read)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _wait_for(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._read, 1 << 20) if ready else b""
            if not chunk:
                raise RuntimeError(f"Chromium said nothing for {TIMEOUT_S} s or ended (status {self._process.poll()})")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))
