"""A headless Chromium, controlled by plain WebDriver requests over HTTP."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any, Self

from support import PATIENCE, environment, eventually

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
_ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
]  # fmt: skip


class Browser:
    """One window of a browser with a profile of its own; left, nothing of it is left."""

    def __enter__(self) -> Self:
        assert CHROMIUM and DRIVER
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        output = Path(self._profile.name, "driver.log")
        with output.open("wb") as file:
            self._driver = subprocess.Popen(
                [DRIVER, "--port=0"],
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                env=environment(),
            )
        try:
            found = eventually(
                lambda: re.search(r"successfully on port (\d+)", output.read_text()), "chromedriver"
            )
            self._url = f"http://127.0.0.1:{found[1]}/session"
            options = {
                "binary": CHROMIUM,
                "args": [*_ARGUMENTS, f"--user-data-dir={self._profile.name}/profile"],
            }
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
                "timeouts": {"script": 20_000},
            }
            session = self._send("POST", "", {"capabilities": {"alwaysMatch": wanted}})
            self._url += f"/{session['sessionId']}"
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._send("DELETE", "")
        finally:
            self._end()

    def _end(self) -> None:
        self._driver.terminate()
        self._driver.wait(PATIENCE)
        self._profile.cleanup()

    def open(self, url: str) -> None:
        self._send("POST", "/url", {"url": url})

    def run(self, script: str, *values: Any) -> Any:
        """Return what a function body returns in the page."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(values)})

    def log(self) -> list[str]:
        """Return what the console has said since the last time; the log begins anew."""
        return [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def devtools(self, command: str, **values: Any) -> Any:
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": values})

    def size(self, width: int, height: int = 800) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def theme(self, name: str, motion: str = "no-preference") -> None:
        self.devtools(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": name},
                {"name": "prefers-reduced-motion", "value": motion},
            ],
        )

    def zone(self, name: str) -> None:
        """Let the browser believe that it is in this time zone."""
        self.devtools("Emulation.setTimezoneOverride", timezoneId=name)

    def press(self, key: str, times: int = 1) -> None:
        """Press a key: Tab, Enter, or another of these names."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.devtools(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=key,
                    code="Space" if key == " " else key,
                    windowsVirtualKeyCode=codes[key],
                    **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}),
                )

    def picture(self, path: str | Path) -> None:
        """Keep a picture of the whole page."""
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json"}, method=method
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(asked, timeout=PATIENCE + 30) as answer:
            return json.load(answer)["value"]
