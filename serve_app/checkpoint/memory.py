"""How much memory this process may still take: of the machine or its container, or of a GPU."""

import os
from pathlib import Path
from typing import Final

import torch

CGROUPS: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")
LIMIT_NAMES: Final = {"v2": "memory.max", "v1": "memory.limit_in_bytes"}


def device_memory(device: str) -> int | None:
    """Bytes that a device of this machine has for us; None where there is no such device.

    Of a GPU what is free now, because others may sit on it; asking takes a few hundred MB of it, the CUDA context. Of
    the CPU all that this process could be given, because what others hold there can be written out.
    """
    if not device.startswith("cuda"):
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = cgroup_limit()
        return machine if limit is None else min(machine, limit)
    if not torch.cuda.is_available():
        return None
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return int(free_bytes)


def cgroup_limit(membership: Path = MEMBERSHIP, mount: Path = CGROUPS) -> int | None:
    """The least memory limit of this process's control groups, v1 or v2; None where there is none.

    Args:
        membership: ``/proc/self/cgroup``.
        mount: where the groups are. A container sees its own group as the root, or only the root of what the file says.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _limits(mount, path, LIMIT_NAMES["v2"])
        elif "memory" in controllers.split(","):
            limits += _limits(mount / "memory", path, LIMIT_NAMES["v1"])
    return min(limits, default=None)


def _limits(root: Path, path: str, name: str) -> list[int]:
    """The limits of a group and of those above it; "max" is none."""
    group = root / path.strip("/")
    found: list[int] = []
    for folder in (group, *group.parents):
        if folder != root and root not in folder.parents:
            break
        try:
            found.append(int((folder / name).read_text()))
        except (OSError, ValueError):
            continue
    return found
