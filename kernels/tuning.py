"""Launch parameters that a sweep on a device found, before those that the launchers would choose.

`kernels/tuned/<device>.json`, written by `python -m benchmarks.gpu quick`, holds what won there:

    {"device": "NVIDIA H100 80GB HBM3", "capability": [9, 0], "commit": str, "date": str,
     "tables": {"select.similarities": {"bfloat16 d≤128 full": {"num_warps": 4}}, …},
     "measured": {"select.similarities": {"bfloat16 d≤128 full": {"us": 679.0, "default_us": 872.0, …}}, …}}

A table is one choice of a launcher. Its keys say for what kind of launch the winner was found. A device without a file,
a table or a key that its file does not have: the launcher's own choice. `measured` is for readers: of every key that
was swept, the winner's time, error, registers and stack, and the time of the launcher's own choice.
"""

import contextlib
import functools
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

FOLDER = Path(__file__).with_name("tuned")

_MOST_BYTES = 1 << 24

# Tables that are being swept, with what is tried; and the keys that each of them was asked for meanwhile.
_trying: dict[str, dict[str, Any]] = {}
_asked: dict[str, list[str]] = {}


def chosen(table: str, key: str, default: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """Launch parameters of `table` for a launch of the kind `key` on the device of `x`: `default` with the winners.

    Args:
        table: `module.name`, of the launcher that asks.
        key: what the default depends on, made by `key`.
        default: parameters by name, as the kernel and Triton take them.
        x: a tensor of the launch.
    """
    if _trying:
        if table not in _trying:
            return default
        if key not in _asked[table]:
            _asked[table].append(key)
        return default | _trying[table]
    won = winners(device_name(x)).get(table)
    return default if won is None else default | won.get(key, {})


def key(x: Tensor, *words: str) -> str:
    """Key of a table, what a default depends on in words, the dtype of `x` first: `bfloat16 d≤128 full`."""
    return " ".join((str(x.dtype).removeprefix("torch."), *words))


def form(adaptive: bool) -> str:
    """The word of a temperature."""
    return "adaptive" if adaptive else "constant"


@contextlib.contextmanager
def trying(table: str, parameters: dict[str, Any]) -> Iterator[list[str]]:
    """While it lasts `table` gives its default with `parameters`, and all other tables their defaults.

    The list that it yields fills with the keys that the table was asked for.
    """
    _trying[table], _asked[table] = parameters, []
    try:
        yield _asked[table]
    finally:
        del _trying[table], _asked[table]


@functools.cache
def winners(device: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The tables of a device by its name, as torch.cuda.get_device_name has it; none if it has no file.

    A file that is damaged is told, once, and is as none: no loss needs it.
    """
    if not device:
        return {}
    try:
        return read(path_of(device)).get("tables", {})
    except (OSError, ValueError) as problem:
        warnings.warn(f"{problem}; launches go without it", stacklevel=2)
        return {}


def read(path: Path) -> dict[str, Any]:
    """The document in a device's file; an empty one where there is none.

    Raises:
        ValueError: it is no JSON, or its tables are not as above.
        OSError: it cannot be read.
    """
    if not path.exists():
        return {}
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} must be a regular file of at most {_MOST_BYTES:,} bytes")
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path} must be a JSON of tuned tables, got none: {problem}") from None
    tables = document.get("tables") if isinstance(document, dict) else None
    if not (_holds(tables, dict) and all(_holds(keys, dict) for keys in tables.values())):
        raise ValueError(f'{path} must hold "tables" of parameters by key, got {json.dumps(tables)[:60]}')
    values = [won for keys in tables.values() for won in keys.values()]
    if not all(_holds(won, int) and all(0 <= of < 1 << 16 for of in won.values()) for won in values):
        raise ValueError(f'{path} must hold "tables" of whole numbers by parameter, got {json.dumps(tables)[:60]}')
    return document


def _holds(value: Any, kind: type) -> TypeGuard[dict[str, Any]]:
    """Whether it is a dictionary of values of a kind."""
    return isinstance(value, dict) and all(isinstance(of, kind) for of in value.values())


def path_of(device: str, folder: Path = FOLDER) -> Path:
    """The file of a device."""
    name = re.sub(r"\W+", "-", device).strip("-").lower()
    return folder / f"{name}.json"


def device_name(x: Tensor) -> str:
    """Name of the GPU that holds `x`; empty for CPU tensors, which only the interpreter takes."""
    return _name(x.get_device()) if x.is_cuda else ""


@functools.cache
def _name(index: int) -> str:
    return torch.cuda.get_device_name(index)
