"""Settings as a user has written them: on the command line, and in the files that it names."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..recipes import FOLDER
from .config_files import config_files
from .known_settings import Setting
from .short_names import long_name

Tree = tuple[dict[str, Setting], set[str]]
"""The settings that there are, and what they have in common in front."""

_PARTS = ("class_path", "init_args")
"""How a class and its settings are told apart in a file; on the command line they may be, too."""


@dataclass(frozen=True)
class Given:
    """A setting that was given.

    Attributes:
        written: its name as the user wrote it, after that of its file.
        name: its dotted name.
        value: its value; text where it stands on the command line.
        is_text: whether it does, and is read as YAML if it is to be no text.
        own: whether the user wrote it, and not who wrote a recipe.
    """

    written: str
    name: str
    value: Any
    is_text: bool
    own: bool = True


def given_classes(args: Sequence[str]) -> dict[str, Any]:
    """What was given for settings that may be classes, by name: the last of each."""
    found = {}
    for given in _all(args, None):
        name, _, last = given.name.rpartition(".")
        if last == "class_path":
            found[name] = given.value
        elif isinstance(given.value, str):
            found[given.name] = given.value
    return found


def given_to_others(args: Sequence[str], name: str) -> tuple[str, list[str]]:
    """The class that was given for a setting last, and what files gave to another class before, by its last name.

    What stands on the command line is meant for the class that a run ends with, wherever it stands there.
    """
    kind, kind_of = "", dict[str, str]()
    for given in _all(args, None):
        value = parsed_text(given.value) if given.is_text else given.value
        for path, item in list(_flat(value, "", None)) if isinstance(value, dict) else [("", value)]:
            setting = _plain(f"{given.name}.{path}".removesuffix("."))
            if (path or given.written).endswith("init_args"):  # no settings: a number, or null
                continue
            if setting in (name, f"{name}.class_path"):
                kind = str(item)
            elif setting.startswith(f"{name}."):
                kind_of[setting.removeprefix(f"{name}.")] = "" if given.is_text else kind
    last = kind.rpartition(".")[2]
    return last, [setting for setting, of in kind_of.items() if of and of.rpartition(".")[2] != last]


def given_settings(args: Sequence[str], known: dict[str, Setting], groups: set[str]) -> list[Given]:
    """All settings that were given, in order, but what files gave to a class that another has taken the place of.

    Args:
        args: of the command line.
        known: the settings that there are.
        groups: what they have in common in front.
    """
    # Not of the method: a framework's criterion is no other one's, and that is told.
    chosen = [name for name in given_classes(args) if name != "model" and name in known and known[name].is_class]
    gone = {f"{name}.{setting}" for name in chosen for setting in given_to_others(args, name)[1]} - known.keys()
    return [given for given in _all(args, (known, groups)) if given.is_text or given.name not in gone]


def parsed_text(text: str) -> Any:
    """What a text means as YAML, as the parser reads it; itself where it means nothing."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):  # ValueError: of a date that is none
        return text


def _all(args: Sequence[str], tree: Tree | None) -> Iterator[Given]:
    files = {place: name for place, _, name in config_files(args)}
    place = 0
    while place < len(args):
        argument, place = args[place], place + 1
        if place - 1 in files:
            yield from _of_file(files[place - 1], tree)
            continue
        if argument in ("--config", "-c") or not argument.startswith("--") or argument == "--":
            continue
        option, equals, value = argument.partition("=")
        if not equals and place < len(args) and _is_value(args[place]):
            value, equals, place = args[place], "=", place + 1
        if equals:
            option = option.removesuffix("+")
            yield from _of_option(option, _plain((long_name(option) or option)[2:]), value, tree)


def _of_option(option: str, name: str, value: str, tree: Tree | None) -> Iterator[Given]:
    """A class with its settings in one value is these, one by one, as in a file."""
    held = parsed_text(value) if value.startswith("{") else None
    if not (isinstance(held, dict) and "class_path" in held):
        yield Given(option, name, value, is_text=True)
        return
    for path, inside in _flat(held, name, tree):
        yield Given(f"{option}{path.removeprefix(name)}", _plain(path), inside, is_text=False)


def _of_file(name: str, tree: Tree | None) -> Iterator[Given]:
    is_file = os.path.isfile(name)
    held = parsed_text(Path(name).read_text("utf-8") if is_file else name)
    own = not (is_file and Path(name).is_relative_to(FOLDER))
    where = f"{name}: " if is_file else ""
    if isinstance(held, dict):
        for path, value in _flat(held, "", tree):
            yield Given(f"{where}{path}", _plain(path), value, is_text=False, own=own)


def _flat(value: dict[Any, Any], path: str, tree: Tree | None) -> Iterator[tuple[str, Any]]:
    # The class before its settings, wherever it stands.
    for key, item in sorted(value.items(), key=lambda entry: entry[0] != "class_path"):
        name = f"{path}.{key}" if path else str(key)
        if isinstance(item, dict) and item and (tree is None or key in _PARTS or _is_group(_plain(name), *tree)):
            yield from _flat(item, name, tree)
        else:
            yield name, item


def _is_group(name: str, known: dict[str, Setting], groups: set[str]) -> bool:
    return name in groups and not (name in known and known[name].chosen is None)


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "init_args")


def _is_value(argument: str) -> bool:
    """Whether an argument is the value of the one before it, and not the next setting: -1 is, and so is -1e-3."""
    if not argument.startswith("-"):
        return True
    try:
        float(argument)
    except ValueError:
        return argument == "-"
    return True
