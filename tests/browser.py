"""A headless browser for tests, driven over a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

__all__ = ["NAMES", "Browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync")
FLAGS += ("hide-scrollbars", "disable-background-networking", "disable-component-update")
FLAGS += ("remote-debugging-pipe",)


class Browser:
    """A tiny client of the DevTools protocol over a pipe."""

    def __init__(self, program: str, profile: Path) -> None:
        (to_read, self._write), (self._read, to_write) = os.pipe(), os.pipe()
        line = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        names = (*FLAGS, f"user-data-dir={profile}")
        flags = [*(f"--{name}" for name in names), "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", line, "browser", program, *flags],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._rest, self._count, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 20)
            if not part:
                raise ConnectionError("the browser closed its pipe")
            self._rest += part
        first, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(first)
        return message

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def evaluate(self, script: str) -> Any:
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, page: Path, width: int, *, dark: bool = False, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        until = time.monotonic() + 60
        while self.evaluate("document.documentElement?.dataset.drawn") != "true":
            assert time.monotonic() < until, f"the page did not finish: {self.complaints()}"
            time.sleep(0.05)
        self.evaluate("new Promise(done => setTimeout(done, 300))")

    def complaints(self) -> list[str]:
        """Console errors and warnings, exceptions, policy violations."""
        found = []
        for event in self.events:
            what, body = event.get("method"), event.get("params", {})
            if what == "Runtime.exceptionThrown":
                found.append(json.dumps(body["exceptionDetails"])[:3000])
            elif what == "Runtime.consoleAPICalled" and body["type"] in ("error", "warning"):
                found.append(json.dumps(body["args"])[:3000])
            elif what == "Log.entryAdded" and body["entry"]["level"] in ("error", "warning"):
                found.append(json.dumps(body["entry"])[:3000])
        return found

    def requests(self) -> list[str]:
        """Addresses asked for, other than the page itself and data inside it."""
        sent = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [body["request"]["url"] for body in sent]
        return [url for url in urls if not url.startswith(("file:", "data:", "blob:"))]

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
