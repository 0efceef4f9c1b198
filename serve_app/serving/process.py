"""What this process is made of and what it holds, for ``/info``."""

import functools
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell cheaply."""
    try:
        pages = int(STATM.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def package_versions(packages: tuple[str, ...]) -> Mapping[str, str]:
    """Version of each package that is installed, and of Python."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
