"""Keyword arguments as the settings that they are on the command line."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..data.own.items import class_name
from .short_names import SHORT_NAMES

_VALUES = {"arguments", "max_time", "init_args", "dict_kwargs"}
"""Names of settings that are mappings themselves, not groups of settings."""


def arguments_of(settings: Mapping[str, Any], beside: Mapping[str, str] | None = None) -> dict[str, str]:
    """Whole names of settings to their values as text.

    Args:
        settings: by short or whole names, or in groups.
        beside: others, which these must not repeat.

    Raises:
        ValueError: one is given twice, or is no plain data.
    """
    found: dict[str, str] = {}
    by: dict[str, str] = dict.fromkeys(beside or (), "a setting of its own")
    for given, value in settings.items():
        for name, text in _texts(SHORT_NAMES.get(given, given), value):
            if name in by:
                raise ValueError(f"{name} must be given once, got it by {by[name]} and by {given}")
            found[name], by[name] = text, given
    return found


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    is_group = isinstance(value, Mapping) and value and "class_path" not in value
    if is_group and name.rpartition(".")[2] not in _VALUES:
        for key, item in value.items():
            yield from _texts(f"{name}.{key}", item)
    else:
        plain = _plain(name, value)
        yield name, plain if isinstance(plain, str) else json.dumps(plain)


def _plain(name: str, value: Any) -> Any:
    """A value as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, type):
        return class_name(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a number of numpy's or torch's
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{name} must be plain data, a class or settings of one, got a {class_name(value)}; what may be an object: "
        "method, backbone, data, evaluation, augment and callbacks"
    )
