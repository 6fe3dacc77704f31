"""Headless Chromium by its DevTools protocol, over a pipe: no library, no port."""

import base64
import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
)

PATIENCE = 120
"""Seconds for which a browser may be silent."""


def find_browser() -> str | None:
    """Where one is, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


@dataclass
class Visit:
    """A page as it was opened. requests: every address that was asked for. said: errors and messages of the console.
    width: of the document, in CSS pixels. ground: the colour behind it, red, green and blue."""

    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    width: int = 0
    title: str = ""
    ground: tuple[int, ...] = ()


class Browser:
    """One process; `visit` opens a page in a tab of its own."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._buffer = b""
        self._number = 0

    def visit(self, file: Path, width: int, *, dark: bool, picture: Path | None = None) -> Visit:
        """Open a file as a window of `width` CSS pixels shows it, and keep a picture of the whole page where asked."""
        visit = Visit()
        target = self._call("Target.createTarget", {"url": "about:blank"}, visit)["targetId"]
        session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True}, visit)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable", {}, visit, session)
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", size, visit, session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", {"features": [scheme]}, visit, session)
        self._call("Page.navigate", {"url": file.resolve().as_uri()}, visit, session)
        while self._message(visit).get("method") != "Page.loadEventFired":
            pass
        self._evaluate("document.querySelectorAll('details').forEach(one => one.open = true)", visit, session)
        visit.width = int(self._evaluate("document.documentElement.scrollWidth", visit, session))
        visit.title = str(self._evaluate("document.title", visit, session))
        colour = self._evaluate("getComputedStyle(document.body).backgroundColor", visit, session)
        visit.ground = tuple(map(int, re.findall(r"\d+", str(colour))))
        if picture is not None:
            shot = self._call("Page.captureScreenshot", {"captureBeyondViewport": True}, visit, session)
            picture.write_bytes(base64.b64decode(shot["data"]))
        self._call("Target.closeTarget", {"targetId": target}, visit)
        return visit

    def _evaluate(self, expression: str, visit: Visit, session: str) -> Any:
        found = self._call("Runtime.evaluate", {"expression": expression, "returnByValue": True}, visit, session)
        return found["result"].get("value")

    def _call(self, method: str, parameters: dict[str, Any], visit: Visit, session: str | None = None) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {} if session is None else {"sessionId": session}
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message(visit)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self, visit: Visit) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], PATIENCE)
            assert ready, f"the browser said nothing for {PATIENCE} seconds"
            part = os.read(self._reading, 1 << 20)
            assert part, "the browser ended"
            self._buffer += part
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        match message.get("method"):
            case "Network.requestWillBeSent":
                visit.requests.append(message["params"]["request"]["url"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                visit.said.append(json.dumps(message["params"]))
        return message


@contextlib.contextmanager
def open_browser(path: str) -> Iterator[Browser]:
    """Start it, with a profile of its own, and end it."""
    to_read, to_write = os.pipe(), os.pipe()
    # the browser reads from 3 and writes to 4: out of their way first
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_write[0], to_read[1])]

    def place() -> None:
        os.dup2(theirs[0], 3)
        os.dup2(theirs[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (*theirs, to_write[0], to_read[1]):
            os.close(end)
        try:
            yield Browser(to_read[0], to_write[1])
        finally:
            os.close(to_write[1])
            process.terminate()
            process.wait(timeout=300)
            os.close(to_read[0])
