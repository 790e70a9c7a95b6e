"""What a machine has left for `bench scale`."""

import os
import re
from pathlib import Path

import torch

_GROUPS = Path("/sys/fs/cgroup")
# A group's limit, what it uses, and the name of the bytes among these that the kernel gives up when they are wanted.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def memory_free(device: str) -> int:
    """Bytes that new processes can have: of the GPU, or of the machine and of every cgroup that this process is in."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    free = [int(found[1]) * 1024] if found else [1 << 60]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = _GROUPS / controllers
            folder = root / path.lstrip("/")
            # In a container the path may be the host's, and the root the container's own.
            free += [_free_of(group) for group in (folder, *folder.parents) if group.is_relative_to(root)]
    return min(free)


def _free_of(group: Path) -> int:
    for limit, usage, reclaimed in _FILES:
        try:
            most = (group / limit).read_text().strip()
            used = int((group / usage).read_text())
            fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if most != "max":
            return max(0, int(most) - used + int(fields.get(reclaimed, 0)))
    return 1 << 60


def file_system(folder: Path) -> str:
    """Type of the file system that a folder lies on, as the kernel names it: ext4, overlay, tmpfs."""
    folder = Path(os.path.realpath(folder))
    found, longest = "unknown", -1
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split(" ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), where))
        # The last one of a place hides those before it.
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = kind, len(point.parts)
    return found
