"""What the system says of the machine and of this process: cores, memory, file systems."""

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


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def memory() -> dict[str, int]:
    """Bytes of this process: resident, of these its own and mapped from files, and the peak.

    Raises:
        OSError: the system does not tell (no Linux).
    """
    text = Path("/proc/self/status").read_text()
    found = {}
    for name, field in {"resident": "VmRSS", "own": "RssAnon", "mapped": "RssFile", "peak": "VmHWM"}.items():
        value = re.search(rf"{field}:\s*(\d+) kB", text)
        if value is None:
            raise OSError(f"/proc/self/status has no {field}")
        found[name] = int(value[1]) * 1024
    return found


def reset_peak() -> None:
    """Have the peak of `memory` begin at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def child_processes() -> list[int]:
    """Process ids of this process's child processes."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


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
