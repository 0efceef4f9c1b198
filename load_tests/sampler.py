"""Memory, descriptors and CPU time of a running deployment, by what its processes are for. Linux only."""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from load_tests.memory import MIB, PROC, command_of, group_of, owner_of, root_of, weigh
from serve_app.config import is_loopback
from serve_app.serving.descendants import Descendants

TICK_HZ: Final = os.sysconf("SC_CLK_TCK")
PROXY: Final = "proxy"
DEFAULT_PORT: Final = 8998


def roots_of(url: str, named: Sequence[int]) -> list[int]:
    """The processes to look at, with all below them: those that were named, else whoever serves this address here."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if named or not is_loopback(parts.hostname or ""):
        return list(named)
    owner = owner_of(parts.port or DEFAULT_PORT)
    return [root_of(owner)] if owner is not None else []


def family_of(roots: Iterable[int]) -> list[int]:
    """These and all that they started."""
    members: list[int] = []
    for root in roots:
        family = Descendants(root)
        family.look()
        members += [root, *family.left()]
    return list(dict.fromkeys(members))


def role_of(process: int) -> str:
    """What a process is for; HAProxy is a role of its own."""
    command = command_of(process)
    return PROXY if "bin/haproxy" in command else group_of(command)


def sample(roots: Sequence[int], time_s: float) -> dict[str, Any]:
    """Memory (PSS), descriptors and threads of a deployment now."""
    members = family_of(roots)
    return {
        "time_s": round(time_s, 1),
        "processes": len(members),
        "mib": round(sum(weigh(process) for process in members) / MIB, 1),
        "descriptors": sum(_entries(process, "fd") for process in members),
        "threads": sum(_entries(process, "task") for process in members),
    }


def cpu_s(processes: Iterable[int]) -> dict[int, float]:
    """CPU time that each has used so far; those that are gone are left out."""
    used: dict[int, float] = {}
    for process in processes:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
            used[process] = (int(fields[11]) + int(fields[12])) / TICK_HZ
    return used


def machine_s() -> float:
    """CPU time that all processes of this machine have used so far; in a container, the host's."""
    with contextlib.suppress(OSError, ValueError):
        fields = [int(field) for field in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) / TICK_HZ  # without idle and waiting for a disk
    return 0.0


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def growth(before: Mapping[int, float], after: Mapping[int, float]) -> dict[int, float]:
    """CPU time between two looks; a process that came in between counts from its birth."""
    return {process: used - before.get(process, 0.0) for process, used in after.items()}


def _entries(process: int, folder: str) -> int:
    try:
        return len(os.listdir(PROC / str(process) / folder))
    except OSError:
        return 0
