# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How much memory a process may still take."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

_CGROUPS = ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, its container and its own limit; None where none says."""
    free = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # "max" is no number
            place = Path("/sys/fs/cgroup")
            free.append(int((place / limit).read_text()) - int((place / used).read_text()))
    with suppress(OSError, ValueError, AttributeError):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if limit != resource.RLIM_INFINITY:
            free.append(limit - taken)
    return min(free, default=None)
