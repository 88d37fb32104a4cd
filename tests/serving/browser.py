"""A page in Chromium, by its DevTools protocol over two pipes, for which no library is needed."""

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_SECONDS = 90
# The browser reads from descriptor 3 and writes to 4.
_START = """
import os, sys
for given, wanted in zip(sys.argv[1:3], (3, 4)):
    os.dup2(int(given), wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A page of an address; use it as a context.

    Attributes:
        complaints: what it has written to the console, and exceptions of its code.
    """

    def __init__(self, url: str, folder):
        self.complaints: list[str] = []
        self._numbers, self._rest = itertools.count(1), b""
        down, self._up = os.pipe()
        self._down, up = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        command = [sys.executable, "-c", _START, str(down), str(up), CHROMIUM, *flags]
        self._process = subprocess.Popen(command, pass_fds=(down, up), stderr=subprocess.DEVNULL)
        os.close(down)
        os.close(up)
        self._session = None
        target = self.call("Target.createTarget", url=url)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.until("document.readyState === 'complete' && models.length > 0")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._up)
        os.close(self._down)

    def call(self, method: str, **parameters):
        """Returns the result of a method of the protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._up, json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != number:
            told = found.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
            if told and found["params"].get("entry", {}).get("level") not in ("verbose", "info"):
                self.complaints.append(json.dumps(found["params"])[:500])
        assert "error" not in found, found
        return found["result"]

    def __call__(self, code: str):
        """Returns the value of JavaScript code; if it is a promise, of what it promises."""
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Waits until the value of the code is true."""
        deadline = time.monotonic() + _SECONDS
        while not self(f"(() => {{ try {{ return {condition}; }} catch {{ return false; }} }})()"):
            assert time.monotonic() < deadline, condition
            time.sleep(0.05)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Presses a key."""
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, modifiers=modifiers, windowsVirtualKeyCode=codes[key]
            )

    def _next(self):
        """Returns the next message of the browser."""
        while b"\0" not in self._rest:
            assert select.select([self._down], [], [], _SECONDS)[0], "the browser does not answer"
            part = os.read(self._down, 65536)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
