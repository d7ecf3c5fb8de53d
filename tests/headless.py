"""A headless Chromium, asked over its debugging pipe: no driver and no port, only the browser itself."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
PATIENCE = 180.0  # seconds: machines that run tests may be busy
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str | None:
    """The installed browser; None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One page in a browser of its own. `problems`: errors and warnings of its console; `requests`: what it loaded."""

    def __init__(self, browser: str, profile: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        to_browser, from_us = os.pipe()
        from_browser, to_us = os.pipe()
        # beyond 3 and 4, which the browser reads and writes
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, to_us)]
        for end in (to_browser, to_us):
            os.close(end)
        self._write, self._read, self._rest = from_us, from_browser, b""
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--disable-background-networking", f"--user-data-dir={profile}",
                   "--remote-debugging-pipe"]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *map(str, ends), browser, *options],
            pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in ends:
            os.close(end)
        self._number, self._session, self._loaded = 0, None, False
        self.problems: list[str] = []
        self.requests: list[str] = []
        try:
            self._prepare(width=width, height=height, dark=dark)
        except BaseException:
            self.close()
            raise

    def _prepare(self, *, width: int, height: int, dark: bool) -> None:
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        window = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", **window)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._ask("Emulation.setEmulatedMedia", features=features)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The browser and all its processes end."""
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for end in (self._write, self._read):
            os.close(end)

    def open(self, path: Path) -> None:
        """Returns when the page has loaded."""
        self._loaded = False
        self._ask("Page.navigate", url=path.resolve().as_uri())
        self._until(lambda: self._loaded, "the page to load")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression (or its promise) comes to."""
        found = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = PATIENCE) -> None:
        """AssertionError where it does not become true in time."""
        self._until(lambda: self.value(expression), expression, seconds)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the first element that matches: what covers it is what is clicked."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        place = self.value(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({element}.getBoundingClientRect())"
        )
        self.click_at(place[0], place[1])

    def click_at(self, x: float, y: float) -> None:
        """A click of the mouse at this place of the window."""
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def move(self, x: float, y: float) -> None:
        """The mouse goes there, no button pressed."""
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, places: Sequence[tuple[float, float]]) -> None:
        """From the first place through all others with the left button down."""
        for number, (x, y) in enumerate(places):
            kind = "mouseMoved" if number else "mousePressed"
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        x, y = places[-1]
        self._ask("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def write(self, selector: str, text: str) -> None:
        """Click into a field and type, after what stands there is gone."""
        self.click(selector)
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        self._ask("Input.insertText", text=text)

    def save_into(self, folder: Path) -> None:
        """What the page saves from now on goes into this folder."""
        self._ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder.resolve()))

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page as it is, all of it or what the window shows."""
        data = self._ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        number = self._number
        while True:
            answer = self._next(PATIENCE)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _until(self, done: Any, what: str, seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds:.0f} s for {what}; the console: {self.problems}")
            self._ask("Runtime.evaluate", expression="1")  # reads what has happened meanwhile
            time.sleep(0.02)

    def _next(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], seconds)
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        event = json.loads(message)
        self._note(event.get("method", ""), event.get("params", {}))
        return event

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(event["exceptionDetails"].get("exception", {}).get("description", event)))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.problems.append(f"{event['type']}: {[argument.get('value') for argument in event['args']]}")
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.problems.append(str(event["entry"]["text"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"][:200])
