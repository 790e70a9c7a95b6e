"""Which settings there are, by their dotted names: of the parser, and of the classes that have been chosen for it."""

import difflib
import functools
import inspect
import pydoc
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from lightning.pytorch.cli import LightningArgumentParser

from ..runs.settings import TRUSTED

# What others call settings that have another name here.
_ALIASES = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "gpus": "devices",
    "num_gpus": "devices",
    "workers": "num_threads",
    "num_workers": "num_threads",
    "image_size": "size",
    "img_size": "size",
    "resolution": "size",
    "arch": "backbone.name",
    "warmup": "warmup_epochs",
    "tau": "temperature",
    "amp": "precision",
    "fp16": "precision",
    "grad_clip": "gradient_clip_val",
    "output_dir": "run_dir",
    "log_dir": "run_dir",
    "save_every": "every_n_epochs",
}
OWN_OPTIONS = ("recipe", "data", "resume", "run_dir", "trust", "config", "print_config")
"""Options of the command beside the settings."""


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: dotted, as the command line takes it.
        hint: its type.
        default: None too where it has none.
        help: what it is.
        required: whether it must be given.
        chosen: the class whose settings are those below it; None where there are none, or nobody knows which.
    """

    name: str
    hint: Any
    default: Any
    help: str
    required: bool = False
    chosen: type | None = None

    @property
    def is_class(self) -> bool:
        """Whether it may be a class with settings of its own."""
        return any(classes(self.hint))

    @property
    def is_open(self) -> bool:
        """Whether there are names below it that nobody knows before they are read."""
        kinds = {getattr(kind, "__origin__", kind) for kind in (self.hint, *get_args(self.hint))}
        return self.chosen is None and (self.is_class or bool(kinds & {dict, list}))


def classes(hint: Any) -> Iterator[type]:
    """Classes with settings of their own among what a type accepts, lists of them not."""
    for kind in get_args(hint) or (hint,):
        if inspect.isclass(kind) and kind.__module__.split(".")[0] in TRUSTED and not get_args(kind):
            yield kind


def class_of(name: str, hint: Any) -> type | None:
    """The class that a name or a path means where a type is expected; None if it means none, or one of another kind."""
    known = {kind.__name__: kind for kind in subclasses(hint)}
    found = known.get(name) or (pydoc.locate(name) if "." in name else None)
    return found if isinstance(found, type) and issubclass(found, tuple(classes(hint))) else None


def subclasses(hint: Any) -> list[type]:
    """The classes of this package that a type accepts; of others', if it has none that can be made."""
    found: dict[type, None] = {}
    waiting = list(classes(hint))
    while waiting:
        kind = waiting.pop(0)
        found[kind] = None
        waiting += kind.__subclasses__()
    # A study's own are named by their paths alone, and are there only where it was imported.
    made = [
        kind
        for kind in found
        if not (
            inspect.isabstract(kind) or kind.__name__.startswith("_") or kind.__module__.startswith("amcl_fast.study")
        )
    ]
    roots = tuple(classes(hint))
    # What the package itself builds on is for that alone; a class of a user's own makes none of its bases so.
    bases = {base for kind in made if kind.__module__.startswith("amcl_fast.") for base in kind.__mro__[1:]}
    return [kind for kind in made if kind not in roots or kind not in bases] or made


def known(parser: LightningArgumentParser, chosen: Mapping[str, Any]) -> dict[str, Setting]:
    """Settings of a parser by name.

    Args:
        parser: with its arguments.
        chosen: names of classes, by the setting for which each has been given.
    """
    return {setting.name: setting for setting in _walk(parser, "", chosen)}


def groups(names: Iterable[str]) -> set[str]:
    """What several settings have in common in front: `trainer`, `model.optimizer`."""
    return {name[: match.start()] for name in names for match in re.finditer(r"\.", name)}


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Names of settings that somebody may have meant, the likeliest first; at most two.

    The last part of a name counts most: it is what is remembered.
    """
    name = name.replace("-", "_").lower()
    before, _, leaf = name.rpartition(".")
    leaves = {leaf, _ALIASES.get(leaf, leaf).rpartition(".")[2]}
    if leaf in _ALIASES:
        leaves = {_ALIASES[leaf].rpartition(".")[2]}
    found = []
    for other in names:
        group, _, last = other.rpartition(".")
        alike = max(_ratio(own, last) for own in leaves)
        if alike < 1 and min(len(leaf), len(last)) > 2 and (last.startswith(leaf) or leaf.startswith(last)):
            alike = max(alike, 0.85)
        place = _ratio(before, group) if before else 0.5
        found.append((0.75 * alike + 0.25 * place, other))
    found.sort(key=lambda pair: (-pair[0], len(pair[1]), pair[1]))
    best = found[0][0] if found else 0.0
    return [other for score, other in found if score >= max(0.6, best - 0.12)][:2]


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _walk(parser: Any, prefix: str, chosen: Mapping[str, Any]) -> Iterator[Setting]:
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if hint is None or type(action).__name__ != "ActionTypeHint":
            continue
        name = f"{prefix}{action.dest}"
        own = _chosen(name, hint, chosen)
        required = action.dest in getattr(parser, "_extra_required_keys", ()) or bool(action.required)
        yield Setting(name, hint, action.default, action.help or "", required, own)
        if own is not None:
            yield from _walk(_class_parser(own), f"{name}.", chosen)


def _chosen(name: str, hint: Any, chosen: Mapping[str, Any]) -> type | None:
    """The class of a setting: the one that was given, or this package's own where there is no choice."""
    own = [kind for kind in classes(hint) if kind.__module__.split(".")[0] == "amcl_fast"]
    given = chosen.get(name)
    if isinstance(given, str) and (found := class_of(given, hint)) is not None:
        return found if own or found.__module__.split(".")[0] == "amcl_fast" else None
    return own[0] if own else None


@functools.cache
def _class_parser(kind: type) -> LightningArgumentParser:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    return parser
