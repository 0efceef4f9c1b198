"""A deployment of our own: ``serve_app up`` in a process below this one, and its file, to be edited and rolled out."""

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import yaml

from serve_app.config import read_config
from serve_app.errors import ConfigError

ADDRESS: Final = re.compile(r"^(http://\S+:\d+)$")
START_S: Final = 300.0
STOP_S: Final = 30.0


class Child:
    """A running deployment and the file that it was started from."""

    def __init__(self, process: asyncio.subprocess.Process, config: Path) -> None:
        self._process = process
        self._config = config
        self._heard = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())
        self.lines: list[str] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def up(cls, config: Path) -> AsyncIterator[Self]:
        """Start it, and end it with all that is below. Raises ConfigError when it does not start."""
        command = [sys.executable, "-m", "serve_app.cli", "up", str(config), "--port", "0"]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        child = cls(process, config)
        try:
            yield child
        finally:
            await child._stop()

    async def url(self) -> str:
        """Its address, once a conversation can start."""
        return (await self.says(ADDRESS, START_S))[1]

    async def says(self, wanted: re.Pattern[str], limit_s: float) -> re.Match[str]:
        """The first line that matches. Raises ConfigError with what it said instead, when it ends or takes too long."""
        try:
            async with asyncio.timeout(limit_s), self._heard:
                while True:
                    for line in self.lines:
                        if found := wanted.match(line):
                            return found
                    if self._reading.done():
                        break
                    await self._heard.wait()
        except TimeoutError:
            pass
        raise ConfigError(str(self._config), "\n".join(["did not do what was wanted; it said", *self.lines[-20:]]))

    def change(self, application: str, args: Mapping[str, Any]) -> None:
        """Edit the file and have it rolled out."""
        edit(self._config, application, args)
        self._process.send_signal(signal.SIGUSR1)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            await self._say(line.decode(errors="replace").rstrip("\n"))
        await self._say("(it has ended)")

    async def _say(self, line: str) -> None:
        async with self._heard:
            self.lines.append(line)
            self._heard.notify_all()

    async def _stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(self._process.wait(), STOP_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading


def edit(config: Path, application: str, args: Mapping[str, Any]) -> None:
    """Replace args of one application in a file."""
    content = yaml.safe_load(config.read_text())
    next(entry for entry in content["applications"] if entry["name"] == application)["args"] |= args
    config.write_text(yaml.safe_dump(content))


def copy(config: Path, folder: Path) -> Path:
    """A copy of a deployment's file that may be edited; a shipped one is found from anywhere. Raises ConfigError."""
    content = read_config(config).serve.model_dump(mode="json")
    made = folder / config.name
    made.write_text(yaml.safe_dump(content))
    return made
