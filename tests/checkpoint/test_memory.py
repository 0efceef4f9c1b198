"""How much memory counts when slots are planned."""

import os
from pathlib import Path

import pytest
import torch

from serve_app.checkpoint import memory
from serve_app.checkpoint.memory import cgroup_limit, device_memory

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
UNLIMITED_V1 = "9223372036854771712"


def groups(folder: Path, membership: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """A made-up ``/proc/self/cgroup`` and ``/sys/fs/cgroup``."""
    told, mount = folder / "membership", folder / "mount"
    told.write_text(membership)
    for name, limit in limits.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(f"{limit}\n")
    return told, mount


@pytest.mark.parametrize(
    ("membership", "limits", "least"),
    [
        ("0::/\n", {"memory.max": "1000"}, 1000),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {}, None),
        ("0::/pod/box\n", {"pod/box/memory.max": "max", "pod/memory.max": "700"}, 700),
        ("0::/pod/box\n", {"pod/box/memory.max": "300", "pod/memory.max": "700"}, 300),
        ("0::/host/path/not/mounted\n", {"memory.max": "500"}, 500),
        ("0::/../sibling\n", {"memory.max": "500"}, 500),
        ("5:cpu,memory:/box\n4:pids:/box\n", {"memory/box/memory.limit_in_bytes": "900"}, 900),
        ("5:memory:/host/path\n0::/\n", {"memory/memory.limit_in_bytes": "800"}, 800),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": UNLIMITED_V1}, int(UNLIMITED_V1)),
        ("1:name=systemd:/a:b\n", {}, None),
    ],
)
def test_the_least_limit_of_the_own_groups_counts(
    tmp_path: Path, membership: str, limits: dict[str, str], least: int | None
) -> None:
    assert cgroup_limit(*groups(tmp_path, membership, limits)) == least


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_limit(tmp_path / "nothing", tmp_path) is None


@pytest.mark.parametrize(("limit", "told"), [(None, MACHINE), (MACHINE - 1, MACHINE - 1), (MACHINE + 1, MACHINE)])
def test_the_cpu_has_the_machines_memory_or_the_containers(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, told: int
) -> None:
    monkeypatch.setattr(memory, "cgroup_limit", lambda: limit)
    assert device_memory("cpu") == told


def test_of_a_gpu_what_is_free_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 80))
    assert device_memory("cuda") == 30


def test_a_gpu_that_is_not_there_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_memory("cuda") is None
