"""The JSON of a machine: what it is, and the sections that were measured on it.

    {
      "schema": 1,
      "machine": {"device": "cpu" | "cuda", "name": str, "cores": int, "memory_gib": float},
      "sections": {
        NAME: {                      # operators, pipeline, training, scaling, scale, compare, gpu.parts's
          "environment": {
            "commit": str, "dirty": bool, "date": str,                # ISO 8601, UTC; dirty: uncommitted changes
            "python": str, "torch": str, "numpy": str, "triton": str | null, "amcl_fast": str,
            "driver": str | null,                                     # NVIDIA's
            "threads": int, "load": float, "elsewhere": float | null, "seconds": float | null,
          },
          "rows": [{...}, ...]       # each section's module says what a row holds
        }
      }
    }

`load` is the system's load average when the section began; `elsewhere` the share of the machine's processor time that
other processes and the hypervisor's other guests took while it ran. A section that is measured again replaces itself
and leaves the others.
"""

import contextlib
import datetime as dt
import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1
_MOST_BYTES = 1 << 28
# A machine with more load than this, a core, is not quiet.
_QUIET = 0.1
# Names the commit where the sources were copied, as they are in it, without their history.
_COMMIT_VARIABLE = "AMCL_FAST_COMMIT"


def default_folder() -> Path:
    """benchmarks/results below the current directory if there is one, or else the current directory."""
    folder = Path("benchmarks/results")
    return folder if folder.is_dir() else Path()


def machine(device: str) -> dict[str, Any]:
    """The machine as its JSON names it; `device` is `cpu` or `cuda`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {"device": device, "name": name, "cores": os.cpu_count() or 1, "memory_gib": round(memory, 1)}


def path_of(folder: Path, device: str) -> Path:
    """The machine's file in `folder`."""
    return folder / f"{slug(machine(device))}.json"


def slug(about: dict[str, Any]) -> str:
    """A name for files about the machine that `machine` describes."""
    name = about["name"] if about["device"] == "cuda" else f"{about['name']} {about['cores']} cores"
    return re.sub(r"\W+", "-", name).strip("-").lower()


def commit() -> str:
    """The commit of the sources, `unknown` if nothing names it."""
    return os.environ.get(_COMMIT_VARIABLE) or _output("git", "rev-parse", "HEAD") or "unknown"


def versions() -> dict[str, Any]:
    """Commit and versions, which stay while a process lives."""
    named = os.environ.get(_COMMIT_VARIABLE)
    status = None if named else _output("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit(),
        "dirty": bool(status),
        "date": "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "triton": _version("triton"),
        "amcl_fast": _version("amcl-fast") or "source",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "threads": torch.get_num_threads(),
    }


@contextlib.contextmanager
def environment(known: dict[str, Any] | None = None, *, quiet: bool = False) -> Iterator[dict[str, Any]]:
    """Versions, commit, date and load; what the machine did besides is filled in at the end of the block.

    Args:
        known: `versions` that were asked for before; None: ask now.
        quiet: do not warn of a load, which may be this command's own.
    """
    about: dict[str, Any] = (known or versions()) | {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
        "elsewhere": None,
        "seconds": None,
    }
    if not quiet and about["load"] > _QUIET * (os.cpu_count() or 1):
        print(f"warning: this machine is not quiet: load average {about['load']}", file=sys.stderr)
    started, before, own = time.monotonic(), _processor_seconds(), _own_seconds()
    try:
        yield about
    finally:
        about["seconds"] = round(time.monotonic() - started, 1)
        after = _processor_seconds()
        if before and after:
            total = after[0] - before[0]
            elsewhere = (after[1] - before[1]) - (_own_seconds() - own)
            about["elsewhere"] = round(max(0.0, elsewhere / total), 3) if total else 0.0


def save(path: Path, device: str, section: str, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Put one section into the machine's file; the file is replaced whole.

    Raises:
        ValueError: the file there is of another schema.
    """
    document: dict[str, Any] = load(path) if path.exists() else {"schema": SCHEMA, "sections": {}}
    document["machine"] = machine(device)
    document["sections"][section] = {"environment": about, "rows": rows}
    # Here: the sides of a comparison import this module beside an amcl_fast of long ago.
    from amcl_fast.runs.files import write_file

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, _text(document) + "\n")


def _text(document: dict[str, Any]) -> str:
    """`json.dumps` with an indent of 1; what is saved row by row is long, and mostly as it was a row ago."""
    sections, rows = dict(document["sections"]), {}
    for name, section in document["sections"].items():
        if section.get("rows"):
            mark = f"\0{name}"
            sections[name] = section | {"rows": mark}
            rows[_dumps(mark)] = ",\n    ".join(map(_dumped, map(_dumps, section["rows"])))
    text = json.dumps(document | {"sections": sections}, indent=1, ensure_ascii=False)
    for mark, lines in rows.items():
        text = text.replace(mark, f"[\n    {lines}\n   ]", 1)
    return text


_dumps = json.JSONEncoder(ensure_ascii=False).encode


@functools.lru_cache(1 << 14)
def _dumped(row: str) -> str:
    """A row of JSON as it stands among the rows of a section."""
    return json.dumps(json.loads(row), indent=1, ensure_ascii=False).replace("\n", "\n    ")


def rounded(value: Any, digits: int, *, finite: bool = False) -> Any:
    """With so many digits of every float in it; `finite`: null for what JSON has no number for."""
    if isinstance(value, float):
        return None if finite and not math.isfinite(value) else float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {name: rounded(of, digits, finite=finite) for name, of in value.items()}
    return [rounded(of, digits, finite=finite) for of in value] if isinstance(value, list | tuple) else value


def load(path: Path) -> dict[str, Any]:
    """The document in a file.

    Raises:
        ValueError: it is none of this schema.
    """
    return _of_schema(_read(path), path)


def load_all(folder: Path) -> list[dict[str, Any]]:
    """Every document of this schema in a folder, by file name; other JSON files are passed over.

    Raises:
        ValueError: a file holds no JSON.
    """
    documents = []
    for path in sorted(folder.glob("*.json")):
        document = _read(path)
        with contextlib.suppress(ValueError):
            documents.append(_of_schema(document, path))
    return documents


def _read(path: Path) -> Any:
    # Not above: commits of long ago, which a comparison measures by these benchmarks, have no such module.
    from amcl_fast.runs.reading import DamagedError, read_json

    try:
        return read_json(path, Any, _MOST_BYTES, finite=False)
    except DamagedError as problem:
        told = f"{path} must hold benchmark results of schema {SCHEMA}, got no JSON: {problem}"
        raise DamagedError(told) from None


def _of_schema(document: Any, path: Path) -> dict[str, Any]:
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path} must hold benchmark results of schema {SCHEMA}, got {schema!r}")
    if not isinstance(document.get("sections"), dict):
        raise ValueError(f"{path} must hold benchmark results in sections, got {document.get('sections')!r:.60}")
    return document


def _processor() -> str:
    """Model of the processor; family and model where the name is a mere brand, as on virtual machines."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in text.splitlines())}
        if "model name" in fields:
            name = re.sub(r"\((R|TM)\)", "", fields["model name"]).strip()
            if not re.search(r"\d", name):
                name += f" family {fields['cpu family']} model {fields['model']}"
            return name
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor_seconds() -> tuple[float, float] | None:
    """(all, not idle) seconds of all cores since the system started; steal counts as not idle."""
    try:
        ticks = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    per_second = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return sum(ticks) / per_second, (sum(ticks) - idle) / per_second


def _own_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])
