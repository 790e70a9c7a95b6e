"""Settings of a run as data: read within limits, searched for foreign code, compared with those of before.

A run directory may come from anybody. Its config.yaml is small and flat when this package has written it, so a file
that is not is refused before anything is built from it; and it names classes, which a resume imports.
"""

import os
import pydoc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .reading import DamagedError, LimitError, check_text, read_utf8

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 40
MAX_TEXT = 10_000
"""Limits of a file of settings: its bytes, its values with every alias written out, their nesting, one value's length.
Those of a run have 6 kB, 300 values, 8 levels and 100 characters."""

TRUSTED = ("amcl_fast", "torch", "torchvision", "lightning")
"""Packages whose classes a run directory may name without being trusted itself."""

LENGTHS = ("trainer.max_epochs", "trainer.min_epochs", "trainer.max_steps", "trainer.min_steps", "trainer.max_time")
"""Settings that say when a training ends."""

MAY_CHANGE = (
    *LENGTHS,
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.callbacks",
    "trainer.logger",
    "trainer.enable_autolog_hparams",
    "trainer.enable_checkpointing",
    "trainer.profiler",
    "trainer.detect_anomaly",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "data.root",
    "data.num_threads",
    "data.prefetch",
    "data.crop_pct",
    "data.max_image_bytes",
    "data.max_image_pixels",
    "knn",
    "checkpoint",
    "guard",
    "report",
)
"""Settings, and groups of them, that a resume may change: none of them alters a step of the training."""

MAY_MOVE = dict.fromkeys(
    ("data.held_out", "data.evaluation"),
    "without it a part of data.root is measured on, with it that part is trained on",
)
"""Paths that a resume may change to others, but neither give nor take away, and why."""

# Text that is never the name of a class or of a file with further settings.
_PLAIN = {
    "data.root",
    "data.held_out",
    "data.evaluation",
    "model.init_args.backbone.weights",
    "recipe",
    "base",
    "run",
    "amcl_fast",
    "trainer.default_root_dir",
}
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
# Of text that is YAML itself: a parser that is given text for a class reads it once more.
_MARKUP = re.compile(r"[{}\[\]&*!|>%@`\"'#?\\\n\r\t]|:\s|:$|^\s*-")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of settings, a run's config.yaml for instance.

    Raises:
        OSError: it cannot be read.
        LimitError: it goes beyond a limit of this module, or is no regular file.
        ValueError: it is no YAML, or no mapping of names to settings; an empty one is {}.
    """
    import yaml  # not at the top: checkpoints are read without it

    text = check_limits(path)
    try:
        settings = yaml.load(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {_one_line(error)}") from error
    except (ValueError, TypeError, OverflowError) as error:  # of a number or date that is none
        raise ValueError(f"{path} holds a value that cannot be read: {_one_line(error)}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must be a mapping of names to settings, got {type(settings).__name__}")
    check_plain(settings, str(path))
    return settings


def check_limits(path: Path) -> str:
    """Read the text of a file of settings that keeps the limits.

    They are checked on the parser's events, before anything is built: neither aliases of aliases nor deep nesting
    cost more than reading the file does.

    Raises:
        OSError: it cannot be read.
        LimitError: it goes beyond a limit of this module, or is no regular file.
        ValueError: it is no YAML, or has a name twice in a group.
    """
    import yaml

    text = read_utf8(path, MAX_BYTES)
    try:
        _check_events(text, path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {_one_line(error)}") from error
    return text


def check_plain(settings: Any, where: str) -> None:
    """Check that settings which were not read by `read_settings` keep its limits and are plain values.

    Raises:
        LimitError: they go beyond a limit.
        ValueError: a value is no mapping, list, text, number, truth value, date or None.
    """
    nodes = 0
    stack = [(settings, 1)]
    while stack:
        value, depth = stack.pop()
        nodes += 1
        if nodes > MAX_NODES:
            raise LimitError(f"{where} is refused: settings must have at most {MAX_NODES:,} values, got more")
        if depth > MAX_DEPTH:
            raise LimitError(f"{where} is refused: settings must be at most {MAX_DEPTH} levels deep, got more")
        if isinstance(value, dict):
            for key in value:
                if key is not None and not isinstance(key, str | int | float):
                    raise ValueError(f"{where}: the name of a setting must be text, got {type(key).__name__}")
            stack += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple):
            stack += [(item, depth + 1) for item in value]
        elif isinstance(value, str):
            if len(value) > MAX_TEXT:
                raise LimitError(
                    f"{where} is refused: a setting must have at most {MAX_TEXT:,} characters, got {len(value):,}"
                )
            try:
                check_text(value)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        elif value is not None and not isinstance(value, bool | int | float) and not hasattr(value, "isoformat"):
            raise ValueError(f"{where}: a setting must be plain data, got {type(value).__name__}")


def foreign_names(settings: dict[str, Any]) -> dict[str, str]:
    """What settings would import from outside `TRUSTED`, or read from another file: setting to what it names.

    Whether a text is the name of a class depends on the type of its setting, which is known only after imports. So
    every text that could be one counts, and so does every text that is the path of a file or an address, since a
    group of settings may be given as the file that holds it, and text that holds such a name and marks of YAML.
    """
    found = {}
    for name, value in _texts(settings):
        if re.sub(r"\[\d+\]", "", name) in _PLAIN:
            continue
        elsewhere = "://" in value or "::" in value or value.strip() == "-" or _is_file(value)
        names = [value.strip()] if _DOTTED.fullmatch(value.strip()) else []
        if _MARKUP.search(value):
            names = _DOTTED.findall(value)
            elsewhere |= "\\" in value  # an escape may stand for any letter
        if elsewhere or not all(map(_is_trusted, names)):
            found[name] = value
    return found


def may_change(name: str) -> bool:
    """Whether a resume may change a setting, by its dotted name."""
    return any(name == setting or name.startswith(f"{setting}.") for setting in MAY_CHANGE)


def refused_changes(then: dict[str, Any], now: dict[str, Any], *, added: bool = True) -> dict[str, str]:
    """Settings that differ and are neither in `MAY_CHANGE` nor paths that moved: name to "OLD to NEW".

    Args:
        then, now: settings as nested mappings.
        added: count those as well that only `now` has, as a later version of this package does.
    """
    return {
        name: " to ".join(_shown(before, after)) + (f" ({MAY_MOVE[name]})" if name in MAY_MOVE else "")
        for name, (before, after) in changes(then, now, added=added).items()
        if not (may_change(name) or (name in MAY_MOVE and bool(before) == bool(after)))
    }


def changed_lengths(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Settings that say when a training ends and differ: "NAME from OLD to NEW", one after the other; "" if none."""
    found = {name: change for name, change in changes(then, now).items() if name in LENGTHS}
    return ", ".join(f"{name} from {' to '.join(_shown(*change))}" for name, change in found.items())


def changes(then: dict[str, Any], now: dict[str, Any], *, added: bool = True) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by their dotted names: what they were, what they are. `added` as for `refused_changes`."""
    old, new = dict(flattened(then)), dict(flattened(now))
    names = [*old, *(name for name in new if name not in old)] if added else list(old)
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def lacking(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that `then` has and `now` does not, neither as a value nor as a group."""
    new = [name for name, _ in flattened(now)]
    return [
        name
        for name, _ in flattened(then)
        if not any(name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.") for other in new)
    ]


@dataclass
class _Level:
    """An open collection: its anchor, values so far, the deepest level below; of a mapping also the names so far."""

    anchor: str | None
    values: int = 1
    height: int = 0
    names: set[str] | None = None
    named: bool = True

    def add(self, values: int, height: int, name: str | None) -> bool:
        """Count a value that is complete, with all that is in it; whether it is a name that was there before."""
        self.values, self.height = self.values + values, max(self.height, height)
        if self.names is None:
            return False
        self.named = not self.named
        if self.named or name in (None, "<<"):
            return False
        known = name in self.names
        self.names.add(name)
        return known


def _check_events(text: str, path: Path) -> None:
    """Raise for a document with too many values, aliases counted as what they stand for, too deep, or a name twice."""
    import yaml

    total = 0
    known: dict[str, tuple[int, int]] = {}  # anchor: values, levels
    levels: list[_Level] = []
    twice: list[str | None] = []

    def add(own: int, height: int) -> None:
        nonlocal total
        total += own
        if total > MAX_NODES:
            raise LimitError(f"{path} is refused: settings must have at most {MAX_NODES:,} values, got more")
        if len(levels) + height > MAX_DEPTH:
            raise LimitError(f"{path} is refused: settings must be at most {MAX_DEPTH} levels deep, got more")

    def complete(values: int, height: int, name: str | None = None) -> None:
        if levels and levels[-1].add(values, height, name):
            twice.append(name)

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            add(1, 1)
            levels.append(_Level(event.anchor, names=set() if isinstance(event, yaml.MappingStartEvent) else None))
        elif isinstance(event, yaml.CollectionEndEvent):
            level = levels.pop()
            add(0, level.height + 1)
            complete(level.values, level.height + 1)
            if level.anchor:
                known[level.anchor] = level.values, level.height + 1
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > MAX_TEXT:
                raise LimitError(
                    f"{path} is refused: a setting must have at most {MAX_TEXT:,} characters, got {len(event.value):,}"
                )
            add(1, 1)
            complete(1, 1, event.value)
            if event.anchor:
                known[event.anchor] = 1, 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in known:
                raise LimitError(f"{path} is refused: *{event.anchor} stands for nothing that is complete before it")
            values, height = known[event.anchor]
            add(values, height)
            complete(values, height)
    if twice:  # what goes beyond a limit is told first
        raise DamagedError(f"{path} must have a name once in a group, got {_one_line(twice[0])[:80]} twice")


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _texts(item, f"{name}[{place}]")
    elif isinstance(value, str):
        yield name, value


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names, one after the other; a list is a value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flattened(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, list(value) if isinstance(value, tuple) else value


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def _is_trusted(name: str) -> bool:
    """Whether a dotted name leads to something that a trusted package defines; `torch.os.system` does not."""
    if name.split(".")[0] not in TRUSTED:
        return False
    try:
        thing = pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        return True  # whoever uses it says what is wrong with it
    home = getattr(thing, "__name__" if type(thing) is type(os) else "__module__", None)
    return thing is None or not isinstance(home, str) or home.split(".")[0] in TRUSTED


def _shown(*values: Any) -> list[str]:
    """Values that differ, each in at most 80 characters, among which is the first that is not alike."""
    texts = ["unset" if value is None else _one_line(value) for value in values]
    pairs = enumerate(zip(*texts, strict=False))
    alike = next((place for place, of in pairs if len({*of}) > 1), min(map(len, texts)))
    if alike >= 77 and max(map(len, texts)) > 80:
        texts = [f"…{text[alike - 37 :]}" for text in texts]
    return [text if len(text) <= 80 else f"{text[:77]}…" for text in texts]


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())
