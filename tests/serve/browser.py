"""Headless Chromium over its DevTools protocol, as far as the page's tests need it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp
import httpx

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--mute-audio",
    "--disable-background-networking", "--disable-dev-shm-usage", "--remote-debugging-port=0",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
PATIENCE_S = 60.0
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowDown": 40}


class Browser:
    """One Chromium with one tab."""

    def __init__(self, folder: Path) -> None:
        """``folder``: its profile; empty."""
        assert CHROMIUM is not None
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        # A group of its own, because the command may be a script around the program.
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self.events: list[dict[str, Any]] = []
        try:
            self._loop.run_until_complete(self._connect(folder / "DevToolsActivePort"))
        except BaseException:
            self.close()
            raise
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")

    async def _connect(self, file: Path) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not (file.exists() and file.read_text().count("\n")):
            assert self._process.poll() is None and time.monotonic() < deadline, "Chromium did not start"
            await asyncio.sleep(0.05)
        port = file.read_text().split()[0]
        targets = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE_S, trust_env=False).json()
        url = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(url, max_msg_size=0)

    def close(self) -> None:
        """End it."""
        if hasattr(self, "_socket"):
            self._loop.run_until_complete(self._socket.close())
            self._loop.run_until_complete(self._session.close())
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._loop.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; what happens meanwhile goes to :attr:`events`."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, params), PATIENCE_S))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_str(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message}"
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def of(self, name: str, field: str) -> Any:
        """A property of the element with that id."""
        return self.run(f"document.getElementById({name!r}).{field}")

    def click(self, name: str) -> None:
        """Click on the element with that id."""
        self.of(name, "click()")

    def wait(self, condition: str) -> None:
        """Return when an expression becomes true."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"never true: {condition}; the page says: {self.run(SAID)}"
            time.sleep(0.05)

    def open(self, url: str) -> None:
        """Load a page; forget the events of the one before."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def press(self, key: str) -> None:
        """A key, as from a keyboard."""
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        code = {"key": key, "windowsVirtualKeyCode": KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def size(self, width: int, height: int, phone: bool = False) -> None:
        """The window's size, or a phone's screen."""
        scale = 2 if phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )

    def choose(self, selector: str, files: list[Path]) -> None:
        """Files for a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What went wrong in the page: exceptions, refused loads, console errors."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url')}")
        return found

    def requested(self) -> list[str]:
        """Every URL that the page asked for."""
        sent = (event for event in self.events if event["method"] == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]


SAID = "document.getElementById('status')?.textContent + ' | ' + document.getElementById('problem')?.textContent"
