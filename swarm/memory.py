"""How much main memory there is to take, on this machine and within its container's limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

SHARE = 0.8
"""Of the memory that is free now, what is taken when nobody says how much: the rest is for activations."""
CGROUPS = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Where groups of processes are, and the files of a group's limit and use, in the second and the first version."""


def size(count: float) -> str:
    """`count` bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def available_memory(device: str) -> int:
    """Bytes that may be used on `device` by default: most of what is free now."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0] * SHARE)
    return int(min(_free_memory(), *container_limits(), *_process_limits(), sys.maxsize) * SHARE)


def _free_memory() -> int:
    """Main memory that can be had without swapping."""
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # macOS does not say how much it could free in a word; half of what is there is a guess on the safe side.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _process_limits() -> Iterator[int]:
    """What this process's own limits leave (ulimit -d, -v), where they can be compared with what it has."""
    if sys.platform != "linux":
        return
    import resource

    lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    for kind, counted in ((resource.RLIMIT_DATA, "VmData:"), (resource.RLIMIT_AS, "VmSize:")):
        limit, _ = resource.getrlimit(kind)
        used = next((int(line.split()[1]) * 1024 for line in lines if line.startswith(counted)), None)
        if limit != resource.RLIM_INFINITY and used is not None:
            yield max(0, limit - used)


def container_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What the groups that this process is in leave of their limits; of those without a limit nothing is said."""
    for controller, limit, used in CGROUPS:
        top = root / controller
        for group in _groups(top, own, controller):
            try:
                most = int((group / limit).read_text(encoding="ascii"))
                yield max(0, most - int((group / used).read_text(encoding="ascii")) + _cached(group))
            except (OSError, ValueError):
                continue


def _groups(top: Path, own: Path, controller: str) -> Iterator[Path]:
    """The group of this process and those around it. A container may see itself as the top."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    path = next((parts[2] for parts in lines if len(parts) == 3 and controller in parts[1].split(",")), "/")
    inner = top / path.lstrip("/")
    yield from (group for group in (inner, *inner.parents) if group == top or top in group.parents)


def _cached(group: Path) -> int:
    """Bytes of files that count as used, and are given back when memory is wanted."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        found = dict(line.split(" ", 1) for line in lines)
        return int(found.get("total_inactive_file", found.get("inactive_file", "0")))
    except (OSError, ValueError):
        return 0
