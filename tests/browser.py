"""A headless Chromium for tests of pages, driven over a pipe: nothing but the standard library."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Browser", "Tab", "find_chromium", "open_browser"]

_PATIENCE = 60.0  # seconds
# Chromium reads commands from descriptor 3, and writes answers to 4.
_LAUNCH = """import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, wanted in zip(ends, (3, 4)):
    os.dup2(end, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """Return the path of a Chromium that starts, or None."""
    for name in ("chromium", "chromium-browser"):
        path = shutil.which(name)
        # Ubuntu has a script of this name that only says how to get the program.
        if path and not subprocess.run([path, "--version"], capture_output=True).returncode:
            return path
    return None


class Browser:
    """The pipe: commands of the DevTools protocol, each with its answer."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._rest, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Return the result of a command; what else arrives until then is an event."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str) -> None:
        """Wait for an event, unless it has come."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            assert ready, "Chromium does not answer"
            found = os.read(self._answers, 2**20)
            assert found, "Chromium has ended"
            self._rest += found
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)


class Tab:
    """A page in the browser, as large as a screen."""

    def __init__(self, browser: Browser, page: Path, width: int, *, dark: bool = False) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        browser.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        browser.wait("Page.loadEventFired")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the result of a command for this page."""
        return self._browser.call(method, self._session, **params)

    def value(self, expression: str) -> Any:
        """Return what JavaScript evaluates to."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def errors(self) -> list[Any]:
        """Return what the console was told, and exceptions, since the page was opened."""
        self.value("1")  # what came before is there now
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self._browser.events if event.get("method") in kinds]


@contextmanager
def open_browser(folder: Path) -> Generator[Browser]:
    """Start Chromium with its profile in a folder, and end it."""
    chromium = find_chromium()
    assert chromium is not None
    arguments = [
        chromium,
        "--headless",
        "--remote-debugging-pipe",
        "--no-sandbox",  # tests may run as root; the pages are ours
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        f"--user-data-dir={folder}",
        "about:blank",
    ]
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    command = [sys.executable, "-c", _LAUNCH, str(from_us), str(to_us), *arguments]
    process = subprocess.Popen(
        command,
        pass_fds=(from_us, to_us),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    try:
        browser = Browser(to_browser, from_browser)
        yield browser
        browser.call("Browser.close")
        process.wait(_PATIENCE)
    finally:
        process.kill()
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
