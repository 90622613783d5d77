"""Memory of this process: what it may still take, and the most it has held."""

from __future__ import annotations

import sys
from pathlib import Path


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, and of its control group; None where nobody says."""
    found = [_meminfo(), _control_group()]
    known = [value for value in found if value is not None]
    return min(known, default=None)


def peak_memory() -> int | None:
    """Most bytes that this process has held in memory; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) if sys.platform == "darwin" else 1024 * int(most)


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _control_group() -> int | None:
    """What a container leaves, caches of files taken as free."""
    try:
        folder = Path("/sys/fs/cgroup")
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        cached = next(
            int(line.split()[1])
            for line in (folder / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return None if limit == "max" else max(0, int(limit) - used + cached)
    except (OSError, StopIteration, ValueError):
        return None
