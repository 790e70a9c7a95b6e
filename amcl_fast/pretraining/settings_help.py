"""What `amcl-fast pretrain --trainer.help` prints: the settings of a group, one in a line."""

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..recipes import recipe_files
from ..setting_types import first_sentence, in_words, shown
from .config_files import of_recipe, with_bases, with_home
from .given_settings import given_classes, given_settings
from .known_settings import Setting, class_of, groups, known, nearest, subclasses
from .lightning_cli import Unbuilt
from .reading import SettingsParser
from .short_names import SHORT_NAMES, long_name
from .trainer_settings import USELESS

_HELP = re.compile(r"--([\w.]+)\.help(?:=(.*))?")

# A longer list of values is cut; a terminal narrower than this is taken for one of this width.
_ACCEPTED, _NARROWEST = 30, 80

# Of the trainer's settings those that a run refuses: it has no validation, and a folder of its own.
_REFUSED = {f"trainer.{name}" for name in (*USELESS, "default_root_dir")} - {"trainer.logger"}  # which takes others


def help_wanted(settings: Sequence[str]) -> bool:
    """Whether a command line asks what the settings of a group are."""
    return any(_HELP.fullmatch(setting) for setting in settings)


def settings_help(recipe: str | None, settings: Sequence[str]) -> str | None:
    """The settings of the group that a command line asks for, with the values that it gives them.

    Args:
        recipe: name of a recipe, whose values are shown; None: the defaults.
        settings: of the command line, --GROUP.help among them, after which a class may be named.

    Returns:
        None where the parser has a help of its own: that of the classes of others.

    Raises:
        ValueError: there is no such group, or a setting is wrong.
    """
    place, asked = next((n, match) for n, setting in enumerate(settings) if (match := _HELP.fullmatch(setting)))
    after = settings[place + 1] if place + 1 < len(settings) else "--"
    kind = asked[2] or (None if after.startswith("-") else after)
    rest = [*settings[:place], *settings[place + 1 + (kind == after) :]]
    files = recipe_files(recipe) if recipe else []
    args = [*of_recipe(recipe, files), *with_bases(with_home(rest)), *([f"--{asked[1]}={kind}"] if kind else [])]
    group = (long_name(f"--{asked[1]}") or f"--{asked[1]}")[2:].replace("init_args.", "")
    tree = known(_Parsers([], Path()).parser, given_classes(args))
    inside = (name for name in tree if name == group or name.startswith(f"{group}."))
    found = [tree[name] for name in inside if name not in _REFUSED]
    if not found:
        close = nearest(group, {*groups(tree)})
        near = " or ".join(f"--{name}.help" for name in close) or "--trainer.help, --data.help, --model.help"
        raise ValueError(f"--{asked[1]}.help must be of a group of settings, got {asked[1]}; close to it: {near}")
    if len(found) == 1 and found[0].chosen is None and found[0].is_class:
        return None
    if kind is not None and (group not in tree or class_of(kind, tree[group].hint) is None):
        made = subclasses(tree[group].hint) if group in tree else []
        one = f" or by one of {', '.join(of.__name__ for of in made)}" if made else ""
        raise ValueError(f"--{asked[1]}.help must be followed by nothing{one}, got {kind}")
    given = given_settings(args, tree, groups(tree))
    values = {setting.name.removesuffix(".class_path"): setting.value for setting in given}
    return "\n".join(_lines(group, found, values, recipe))


def _lines(group: str, found: Sequence[Setting], values: Mapping[str, Any], recipe: str | None) -> list[str]:
    # What is read by a pager or a file is not cut.
    width = max(_NARROWEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 1000
    short = {long: f" (--{short.replace('_', '-')})" for short, long in SHORT_NAMES.items()}
    rows = [
        (
            (setting.name.removeprefix(f"{group}.") if setting.name != group else f"--{group}")
            + short.get(setting.name, ""),
            _value(setting, values),
            _accepted(setting),
            first_sentence(setting.help),
        )
        for setting in sorted(found, key=lambda setting: (setting.name != group, setting.name not in short))
    ]
    columns = [max(len(row[column]) for row in rows) for column in range(3)]
    of = f"values of recipe {recipe}" if recipe else "defaults"
    lines = [f"--{group}.NAME VALUE, of these; their {of}, and what they take:", ""]
    for row in rows:
        line = "  ".join(f"{text:<{size}}" for text, size in zip(row[:3], columns, strict=True)) + f"  {row[3]}"
        lines.append(line.rstrip() if len(line) <= width else f"{line[: width - 1].rstrip()}…")
    chosen = next((setting for setting in found if setting.name == "model" and "model" not in values), None)
    if chosen is not None:
        names = ", ".join(kind.__name__ for kind in subclasses(chosen.hint))
        lines += ["", f"Those of a framework and its loss: --model.help NAME, of {names}; or with --recipe NAME."]
    return lines


def _value(setting: Setting, values: Mapping[str, Any]) -> str:
    value = values.get(setting.name, setting.default)
    if setting.chosen is not None and isinstance(value, str):
        value = value.rpartition(".")[2]
    if setting.required and value is None:
        return "-"
    text = shown([*value] if isinstance(value, tuple) else value)
    return text if len(text) <= 24 else f"{text[:23]}…"


def _accepted(setting: Setting) -> str:
    own = setting.chosen is not None
    text = ", ".join(kind.__name__ for kind in subclasses(setting.hint)) if own else in_words(setting.hint)
    if own and float in getattr(setting.hint, "__args__", ()):
        text = f"{in_words(float)}, {text}"
    text = re.sub(r"\b(?:an?|one of) ", "", text)
    return text if len(text) <= _ACCEPTED else f"{text[: _ACCEPTED - 1]}…"


class _Parsers(Unbuilt):
    """The parser of a run's settings, which reads none."""

    def parse_arguments(self, parser: SettingsParser, args: Any) -> None:  # type: ignore[override]
        self.config: Any = {}
