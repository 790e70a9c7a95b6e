"""Which of the given settings the parser has refused, and why, in one line."""

import argparse
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lightning.pytorch.cli import LightningArgumentParser

from ..setting_types import check_held, has_nan, in_words, shown
from .config_files import config_files
from .given_settings import Given, given_classes, given_settings, parsed_text
from .known_settings import OWN_OPTIONS, Setting, class_of, classes, groups, known, nearest, subclasses
from .short_names import SHORT_NAMES, long_name

# The parser takes null for them; what is built then knows no more than that something is missing.
_GROUPS = ("model.backbone", "model.projector", "model.optimizer", "model.schedule", "model.decoder")
# It takes anything for these, of which no objects are accepted.
_PLAIN_GROUPS = ("trainer", "knn", "checkpoint", "guard", "report")


class RefusedError(ValueError):
    """A setting that cannot be; the message says which, in one line."""


def refused(parser: LightningArgumentParser, args: Sequence[str], said: str) -> str:
    """Why `args` cannot be, in one line.

    Args:
        parser: which has refused them.
        args: of the command line.
        said: what the parser said, which is told where nothing better is found.
    """
    if why := _unreadable(args):
        return why
    tree = known(parser, given_classes(args))
    found = given_settings(args, tree, groups(tree))
    for own in (True, False):
        for given in found:
            if given.own == own and (why := _wrong(given, tree) or _lacking(given, tree, found)):
                return why
    return _required(tree, found) or _loose(args, tree) or _left_out(said) or _in_short(said)


def refuse_nothing(settings: Any, name: str = "") -> None:
    """Raise for a setting that is NaN, or too large a whole number, or a list with one, and for a group that is none.

    Raises:
        ValueError: there is one.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            refuse_nothing(value, ".".join(filter(None, [name, key if key != "init_args" else ""])))
    elif name in _PLAIN_GROUPS or (settings is None and name in _GROUPS):
        raise RefusedError(f"{name} must be settings by name, got {shown(settings)}")
    elif has_nan(settings):
        raise RefusedError(f"{name} must be a number, got {shown(settings)}")
    else:
        check_held(name, settings)


def _wrong(given: Given, tree: Mapping[str, Setting]) -> str | None:
    setting = tree.get(given.name)
    if setting is None:
        name, _, last = given.name.rpartition(".")
        if last == "class_path" and name in tree:
            return _wrong_class(given, tree[name])
        return _unknown(given, tree)
    if setting.is_class and any(kind.__module__.startswith("amcl_fast") for kind in classes(setting.hint)):
        return _wrong_class(given, setting)
    return None if _others_class(given, setting) else _wrong_value(given, setting.hint)


def _others_class(given: Given, setting: Setting) -> type | None:
    """The class of others that is given by its name, whose settings are given beside it."""
    return class_of(given.value, setting.hint) if isinstance(given.value, str) else None


def _lacking(given: Given, tree: Mapping[str, Setting], found: Sequence[Given]) -> str | None:
    """What a class of others, given by its name, cannot be made without."""
    kind = _others_class(given, tree[given.name]) if given.name in tree else None
    if kind is None or kind.__module__.startswith("amcl_fast"):
        return None
    names = {other.name for other in found}
    for name, of in inspect.signature(kind).parameters.items():
        needed = of.default is of.empty and of.kind not in (of.VAR_POSITIONAL, of.VAR_KEYWORD)
        if needed and f"{given.name}.{name}" not in names:
            return f"--{given.name}.{name} must be given with {given.written} {shown(given.value)}, got none"
    return None


def _unknown(given: Given, tree: Mapping[str, Setting]) -> str | None:
    """What is wrong with a name that no setting has: it may be that of a group, or of something within a setting."""
    if given.name in groups(tree):
        if given.is_text and not isinstance(parsed_text(given.value), dict):
            inside = [name for name in tree if name.startswith(f"{given.name}.")]
            first = next((name for name in inside if name in SHORT_NAMES.values()), inside[0])
            return (
                f"{given.written} must be settings by name, as --{first}; --{given.name}.help shows them, "
                f"got {shown(given.value)}"
            )
        by_name = isinstance(given.value, dict) or (isinstance(given.value, str) and os.path.isfile(given.value))
        if by_name or given.is_text:
            return None
        return f"{given.written} must be settings by name, got {shown(given.value)}"
    parts = given.name.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts))]
    if any(name in tree and tree[name].is_open for name in above):
        return None
    if given.name == "data.seed":
        seeds = "seed_everything, which seeds weights and data"
        return f"{given.written} must be given as {seeds}, got {shown(given.value)}"
    names = [name for name in tree if name not in ("base", "recipe")] if given.is_text else list(tree)
    close = nearest(given.name, names + list(OWN_OPTIONS if given.is_text else ()))
    if given.is_text:
        short = {long: f"--{short.replace('_', '-')}" for short, long in SHORT_NAMES.items()}
        close = [each for name in close for each in (f"--{name}", short.get(name)) if each is not None]
    group = next((name for name in reversed(above) if name in groups(tree)), "trainer")
    near = f"close to it: {' or '.join(close)}" if close else f"--{group}.help shows what there is"
    return f"{given.written} is no setting, got {shown(given.value)}; {near}"


def _wrong_class(given: Given, setting: Setting) -> str | None:
    value = parsed_text(given.value) if given.is_text else given.value
    if isinstance(value, str) and class_of(value, setting.hint) is not None:
        return None
    if isinstance(value, dict) or (not isinstance(value, str) and _wrong_value(given, setting.hint) is None):
        return None
    names = ", ".join(kind.__name__ for kind in subclasses(setting.hint))
    numbers = in_words(float) + ", " if float in get_args(setting.hint) else ""
    return f"{given.written} must be {numbers}{names} or package.module.Class, got {shown(given.value)}"


def _wrong_value(given: Given, hint: Any) -> str | None:
    """What is wrong with a value, as the parser itself judges one of the type."""
    value = given.value
    if given.is_text:
        value = parsed_text(given.value)
    kinds = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is list]
    entries = [arg for kind in kinds for arg in get_args(kind) if isinstance(arg, type) and is_dataclass(arg)]
    if isinstance(value, list) and entries:
        return next(
            (why for place, entry in enumerate(value) if (why := _wrong_entry(given, place, entry, entries[0]))), None
        )
    alone = LightningArgumentParser(exit_on_error=False)
    alone.add_argument("--value", type=hint)
    try:
        if given.is_text:
            alone.parse_args([f"--value={given.value}"])
        else:
            alone.parse_object({"value": value})
    except (argparse.ArgumentError, OverflowError):
        return f"{given.written} must be {in_words(hint)}, got {shown(given.value)}"
    return None


def _wrong_entry(given: Given, place: int, entry: Any, kind: type) -> str | None:
    """What is wrong with an entry of a list of groups of settings."""
    names = [field.name for field in fields(kind)]
    if not isinstance(entry, dict):
        return f"{given.written} must be a list of groups with any of {', '.join(names)}, got {shown(entry)} among them"
    if "class_path" in entry:
        return None
    hints = get_type_hints(kind)
    for name, value in entry.items():
        written = f"{given.written}[{place}].{name}"
        if name not in names:
            close = nearest(str(name), names)
            near = f"close to it: {' or '.join(close)}" if close else f"names: {', '.join(names)}"
            return f"{written} is no setting, got {shown(value)}; {near}"
        if why := _wrong_value(Given(written, name, value, is_text=False), hints[name]):
            return why
    return None


def _required(tree: Mapping[str, Setting], found: Sequence[Given]) -> str | None:
    """What must be given and is not, or is of a class that was chosen for another one."""
    last = {given.name.removesuffix(".class_path"): given for given in found}
    for setting in tree.values():
        if not (setting.is_class and setting.required):
            continue
        names = ", ".join(kind.__name__ for kind in subclasses(setting.hint))
        given = last.get(setting.name)
        if given is None and not any(name.startswith(f"{setting.name}.") for name in last):
            return f"--{setting.name} must be given, one of {names}, got none"
    return None


def _unreadable(args: Sequence[str]) -> str | None:
    """What is wrong with a file of settings as a whole."""
    for _, _, name in config_files(args):
        if not os.path.isfile(name):
            held = parsed_text(name)
            if not isinstance(held, dict):
                path = name if "\n" not in name and len(name) < 256 else shown(name)  # whole, for it is looked for
                return f"--config must be a file of settings, or settings by name, got {path}, which does not exist"
        elif not isinstance(held := parsed_text(Path(name).read_text("utf-8")), dict | None):
            return f"{name} must be a mapping of names to settings, got {type(held).__name__}"
    return None


def _loose(args: Sequence[str], tree: Mapping[str, Setting]) -> str | None:
    """What is no setting at all, or has no value."""
    for place, argument in enumerate(args):
        before = args[place - 1] if place else ""
        is_option = argument.startswith("--") and argument != "--"
        follows = before.startswith("-") and "=" not in before
        if not is_option and not follows and not argument.startswith("-c"):
            return f"settings must be given as --NAME VALUE, got {shown(argument)}"
        name = (long_name(argument) or argument)[2:]
        after = args[place + 1] if place + 1 < len(args) else "--"
        if is_option and name in tree and after.startswith("--"):
            return f"{argument} must be followed by its value, {in_words(tree[name].hint)}, got none"
        if argument in ("--config", "-c") and place + 1 == len(args):
            return f"{argument} must be followed by a file of settings, got none"
    return None


def _left_out(said: str) -> str | None:
    """What a class that was chosen cannot be made without."""
    match = re.search(r"following arguments are required: (\w+)", said)
    if match is None:
        return None
    inside = re.findall(r'Parser key "([\w.]+)"', said[: match.start()])
    return f"--{'.'.join([*inside, match[1]])} must be given, got none"


def _in_short(said: str) -> str:
    """What the parser said, without its list of everything that it has tried."""
    first = re.split(r"\n\s*(?:Subtypes|Errors|Given value)", said, maxsplit=1)[0]
    text = " ".join(first.split())
    return text if len(text) <= 300 else f"{text[:299]}…"
