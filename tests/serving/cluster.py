"""A deployment as its users start it: one command in a process of its own, with all of Ray below it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from serve_app.serving.descendants import Descendants

ROOT: Final = Path(__file__).parents[2]
START_S: Final = 300.0
POLL_S: Final = 0.1
WAIT_S: Final = 60.0
"""For what comes in a second or two: tests do not depend on how busy the machine is."""
ADDRESS: Final = re.compile(r"^http://localhost:(\d+)$")

T = TypeVar("T")


class Cluster:
    """A running deployment."""

    def __init__(self, process: subprocess.Popen[str], lines: list[str], port: int) -> None:
        self.process = process
        self.lines = lines
        self.port = port
        self.family = Descendants(process.pid)

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def chat(self) -> str:
        return f"ws://127.0.0.1:{self.port}/api/chat"

    @property
    def output(self) -> str:
        """All that the command has printed so far."""
        return "\n".join(self.lines)

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON body."""
        try:
            with urllib.request.urlopen(f"{self.http}{path}", timeout=5) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def info(self) -> dict[str, Any]:
        body = self.get("/info")[1]
        assert isinstance(body, dict)
        return body

    def ready(self) -> bool:
        """Whether a conversation can start."""
        try:
            return self.get("/ready")[0] == 200
        except (OSError, ValueError):  # no proxy yet, or a proxy that knows no gateway yet and says so in plain text
            return False

    def replicas(self, deployment: str) -> list[int]:
        """Processes of a deployment."""
        self.family.look()
        mark = f":{deployment}".encode()
        return [
            process for process in self.family.left() if _title(process).split(b"\0")[0].split(b".")[0].endswith(mark)
        ]

    def interrupt(self, limit_s: float) -> int:
        """Press Ctrl-C. Returns the exit status; raises TimeoutExpired."""
        self.family.look()
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(limit_s)


def _title(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def maps(process: int) -> str:
    """What a process has mapped into its memory."""
    return Path(f"/proc/{process}/maps").read_text()


def eventually(what: Callable[[], T], limit_s: float) -> T:
    """The first true value; raises AssertionError when none comes in time."""
    deadline_s = time.monotonic() + limit_s
    pause = threading.Event()
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < deadline_s, f"still {value!r} after {limit_s:g} s"
        pause.wait(POLL_S)


def changed(
    config: str,
    folder: Path,
    engine: Mapping[str, Any] | None = None,
    gateway: Mapping[str, Any] | None = None,
    http: Mapping[str, Any] | None = None,
) -> Path:
    """A shipped configuration with some args replaced, written to the folder."""
    content = yaml.safe_load((ROOT / "configs" / config).read_text())
    content["http_options"] |= http or {}
    for application in content["applications"]:
        application["args"] |= (engine if application["name"] == "engine" else gateway) or {}
    path = folder / config
    path.write_text(yaml.safe_dump(content))
    return path


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[tuple[Any, list[str]]]:
    """A process and the lines that it prints; ended, with all below it, on the way out."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    family = Descendants(process.pid)
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(line.rstrip("\n") for line in process.stdout or ()))
    reader.start()
    try:
        yield process, lines
    finally:
        family.look()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        family.kill()
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(5)
        process.stdout.close()


@contextlib.contextmanager
def up(config: Path, environment: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """``serve_app up CONFIG`` on a free port, from its printed address to Ctrl-C."""
    command = [sys.executable, "-m", "serve_app.cli", "up", str(config), "--port", "0"]
    with running(command, environment) as (process, lines):

        def port() -> int:
            assert process.poll() is None, f"it ended with {process.returncode}:\n" + "\n".join(lines)
            return next((int(found[1]) for line in list(lines) if (found := ADDRESS.match(line))), 0)

        yield Cluster(process, lines, eventually(port, START_S))
