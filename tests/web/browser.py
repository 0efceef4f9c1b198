"""Headless Chromium over the DevTools protocol: as much as the page's tests need."""

import asyncio
import base64
import contextlib
import dataclasses
import itertools
import json
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Any, Self

from websockets.asyncio.client import ClientConnection, connect

CHROMIUM = Path("/usr/bin/chromium")
STOP_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 90.0

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--remote-debugging-port=0",
    "--use-fake-device-for-media-stream",
)


class BrowserError(Exception):
    """A command or an expression failed in the browser; carries what it said."""


@dataclasses.dataclass
class Page:
    """One tab."""

    connection: ClientConnection
    numbers: "itertools.count[int]" = dataclasses.field(default_factory=itertools.count)
    console: list[str] = dataclasses.field(default_factory=list)

    async def command(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command, wait for its answer; events that come meanwhile go to ``console`` or nowhere."""
        number = next(self.numbers)
        await self.connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            while True:
                message: dict[str, Any] = json.loads(await self.connection.recv())
                if message.get("id") == number:
                    break
                self._note(message)
        if "error" in message:
            raise BrowserError(f"{method}: {message['error']}")
        result: dict[str, Any] = message["result"]
        return result

    async def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression; a promise is awaited."""
        result = await self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise BrowserError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 60.0) -> None:
        """Wait, in the page, until the expression is true there.

        Raises:
            BrowserError: not in time; says what the page shows instead.
        """
        ms = 1_000 * timeout_s
        met = await self.evaluate(
            f"""new Promise((resolve) => {{
                const end = performance.now() + {ms};
                const look = () => ({expression}) ? resolve(true)
                    : performance.now() > end ? resolve(false) : setTimeout(look, 50);
                look();
            }})"""
        )
        if not met:
            shown = await self.evaluate("document.body.innerText")
            raise BrowserError(f"not within {timeout_s:g} s: {expression}\npage: {shown}\nconsole: {self.console}")

    async def click(self, selector: str) -> None:
        """Press the mouse on the middle of an element, as a person does."""
        element = f"document.querySelector({json.dumps(selector)})"
        await self.evaluate(f"{element}.scrollIntoView({{block: 'center'}})")
        box = await self.evaluate(f"{element}.getBoundingClientRect().toJSON()")
        spot = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            await self.command("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **spot)

    async def text(self, selector: str) -> str:
        """What an element says."""
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def show(self, *, width: int, height: int, dark: bool = False) -> None:
        """Take the shape of a screen."""
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        shot = await self.command("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        match message:
            case {"method": "Runtime.consoleAPICalled", "params": {"type": "error" | "warning", "args": args}}:
                self.console.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in args))
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.console.append(str(details))
            case {"method": "Log.entryAdded", "params": {"entry": {"level": "error", "text": text, **rest}}}:
                self.console.append(f"{text} {rest.get('url', '')}")


@dataclasses.dataclass
class Browser:
    """A process of Chromium."""

    address: str

    @classmethod
    @contextlib.contextmanager
    def launched(cls, *, microphone: Path | None, allowed: bool = True) -> Iterator[Self]:
        """Start a browser whose microphone plays a WAV file in a loop.

        Args:
            microphone: the file; None for the beeps that Chromium brings.
            allowed: whether the microphone is granted without a question; otherwise it is denied.
        """
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            extra = [f"--user-data-dir={profile}", "about:blank"]
            extra.append("--use-fake-ui-for-media-stream" if allowed else "--deny-permission-prompts")
            if microphone is not None:
                extra.append(f"--use-file-for-fake-audio-capture={microphone}")
            process = subprocess.Popen(
                [str(CHROMIUM), *_FLAGS, *extra], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
            assert process.stderr is not None
            draining = threading.Thread(target=process.stderr.read)  # a full pipe would stop the browser
            try:
                address = _address(process.stderr)
                draining.start()
                yield cls(address)
            finally:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                if draining.is_alive():
                    draining.join(STOP_TIMEOUT_S)
                process.stderr.close()

    @contextlib.asynccontextmanager
    async def page(self, url: str) -> AsyncIterator[Page]:
        """Open a tab there, loaded."""
        async with _devtools(self.address) as root:
            target = (await root.command("Target.createTarget", url="about:blank"))["targetId"]
            try:
                async with _devtools(f"{self.address.split('/devtools/')[0]}/devtools/page/{target}") as page:
                    for domain in ("Page", "Runtime", "Log"):
                        await page.command(f"{domain}.enable")
                    await page.command("Page.navigate", url=url)
                    await page.until(
                        f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'"
                    )
                    yield page
            finally:
                await root.command("Target.closeTarget", targetId=target)


@contextlib.asynccontextmanager
async def _devtools(address: str) -> AsyncIterator[Page]:
    async with connect(address, max_size=None, compression=None, proxy=None, ping_interval=None) as connection:
        yield Page(connection)


def _address(said: IO[bytes]) -> str:
    """The address it listens on, from what it prints; the test's own time limit bounds the wait."""
    lines = []
    for line in said:
        if line.startswith(b"DevTools listening on "):
            return line.decode().split(" on ")[1].strip()
        lines.append(line)
    raise BrowserError(f"chromium did not start: {b''.join(lines[-20:])!r}")
