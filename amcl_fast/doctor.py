"""`amcl-fast doctor`: what is installed, which backends are live here, and why the others are not."""

import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from amcl_fast import capabilities
from amcl_fast.capabilities import Status
from amcl_fast.ops import backends


@dataclass(frozen=True)
class Findings:
    """What `doctor` found.

    Attributes:
        versions: name to version, or to "not installed".
        gpus: one line per CUDA device.
        cpu: one line.
        backends: the backends of the losses, by name.
        data: "DALI cpu" and "DALI gpu".
        optional: accelerators nothing depends on: "apex".
    """

    versions: dict[str, str]
    gpus: list[str]
    cpu: str
    backends: dict[str, Status]
    data: dict[str, Status]
    optional: dict[str, Status]


def look() -> Findings:
    """Look at this machine."""
    return Findings(
        versions=_versions(),
        gpus=[_gpu(index) for index in range(torch.cuda.device_count())],
        cpu=_cpu(),
        backends={name: known.status() for name, known in reversed(backends.TABLE.items())},
        data={"DALI cpu": capabilities.dali_status("cpu"), "DALI gpu": capabilities.dali_status("gpu")},
        optional={"apex": capabilities.apex_status()},
    )


def render(found: Findings) -> str:
    """The findings as text."""
    lines = [*_table("Versions", found.versions)]
    lines += _table("Hardware", {"CPU": found.cpu, "GPU": "; ".join(found.gpus) or "none that torch sees"})
    for title, statuses in (
        ("Backends of the losses", found.backends),
        ("Data pipeline", found.data),
        ("Optional", found.optional),
    ):
        rows = {name: ("yes  " if s.available else "no   ") + s.reason for name, s in statuses.items()}
        lines += _table(title, rows)
    return "\n".join(lines)


def main() -> int:
    """Print what is found; the exit status is 0, since the reference backend runs wherever torch does."""
    print(render(look()))
    return 0


def _versions() -> dict[str, str]:
    versions = {"python": f"{platform.python_version()} ({sys.executable})"}
    for name in ("amcl-fast", "torch", "torchvision", "triton", "numpy", "lightning"):
        versions[name] = _version(name)
    # The wheel is named after the CUDA it is built for.
    dali = next((d for d in metadata.distributions() if d.name.startswith("nvidia-dali-cuda")), None)
    versions["DALI"] = f"{dali.version} ({dali.name})" if dali else "not installed"
    versions["CUDA of torch"] = torch.version.cuda or "none"
    versions["NVIDIA driver"] = _driver()
    return versions


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text("utf-8")
    except OSError:
        return "none"
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found.group() if found else "unknown"


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return (
        f"cuda:{index} {properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.total_memory / 2**30:.0f} GiB"
    )


def _cpu() -> str:
    found = torch.cpu.get_capabilities()
    sets = {"AVX2": "avx2", "AVX-512": "avx512_f", "AMX": "amx_tile"}
    simd = ", ".join(name for name, key in sets.items() if found.get(key)) or "no AVX2"
    return (
        f"{found.get('cpu_name', platform.processor())} ({platform.machine()}); {simd}; "
        f"{torch.get_num_threads()} torch threads on {len(os.sched_getaffinity(0))} cores"
    )


def _table(title: str, rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [title, *(f"  {name:{width}}  {value}" for name, value in rows.items())]
