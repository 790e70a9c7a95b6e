"""The parser of a run's settings: read, refused in one line, and built."""

import argparse
import ast
import inspect
import json
import pydoc
import re
from collections.abc import Sequence
from typing import Any, get_args

from ..methods import BarlowTwins
from ..setting_types import in_words
from ..temperature import AdaptiveTemperature, LearnedTemperature, PerplexityTemperature
from .given import ParserOfGiven
from .given_settings import given_classes, given_to_others
from .known_settings import known
from .refusals import RefusedError, refuse_nothing, refused
from .short_names import with_long_names
from .told import message
from .values import check_values


class SettingsParser(ParserOfGiven):
    """Takes no abbreviation, those of settings within a class included.

    Takes temperature.dim of Barlow Twins from data.batch_size where nobody gives it, before settings are checked. A
    temperature of another class than a recipe's or a file's has its own defaults, not the range of the other.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "exit_on_error": False, **kwargs})

    def parse_args(self, args: Any = None, *more: Any, **settings: Any) -> Any:
        # Parsers of classes within classes get values as Python writes them, and would read None as a text.
        if args is not None and "defaults" in settings:
            args = [self._as_yaml(argument) for argument in args]
        return super().parse_args(args, *more, **settings)

    def _as_yaml(self, argument: str) -> str:
        option, _, value = argument.partition("=")
        if "None" not in value:
            return argument
        try:
            held = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return argument
        action = self._option_string_actions.get(option)  # none of a setting further inside
        may_be_null = action is None or type(None) in get_args(getattr(action, "_typehint", None))
        return f"{option}={json.dumps(held)}" if isinstance(held, dict) or (held is None and may_be_null) else argument

    def validate(self, cfg: Any, *args: Any, **kwargs: Any) -> None:
        temperature = _of_channels(cfg)
        if temperature is not None and "dim" in temperature and temperature["dim"] is None:
            temperature["dim"] = cfg["data.batch_size"]
        super().validate(cfg, *args, **kwargs)

    def read(self, args: Sequence[str]) -> Any:
        """The settings of a command line.

        Raises:
            ValueError: one is unknown, has another type, or cannot be; it is told with what is accepted.
        """
        try:
            named = with_long_names(args)
            settings = self.parse_args(_joined([*named, *_defaults_again(named)]))
        except (argparse.ArgumentError, OverflowError) as error:  # of a whole number that no float holds
            raise RefusedError(refused(self, args, getattr(error, "message", str(error)))) from error
        refuse_nothing(settings.as_dict())
        self._refuse_null(settings)
        check_values(settings)
        return settings

    def _refuse_null(self, settings: Any) -> None:
        """Raise for a null of a file where none is accepted: jsonargparse takes it for any type."""
        for action in self._actions:
            hint = getattr(action, "_typehint", None)
            accepted = hint in (None, Any) or action.default is None or type(None) in get_args(hint)
            if not accepted and action.dest in settings and settings[action.dest] is None:
                raise RefusedError(f"{action.dest} must be {in_words(hint)}, got null")


class Building:
    """Builds the objects of a parser's settings, and tells by the setting's name what a constructor refuses.

    A constructor knows the last part of a name, and where a setting takes several types, the parser tells of the last
    that it has tried.
    """

    def __init__(self, parser: SettingsParser, args: Sequence[str]) -> None:
        self._parser, self._args = parser, args
        self._failed: tuple[type, Exception] | None = None
        parser.add_instantiator(self._build, object)

    def told(self, error: Exception) -> Exception:
        """The error that says what was refused, of one that has come of building."""
        kind, first = self._failed or (None, error)
        said = message(first)
        match = re.match(r"([a-z_]\w*(?:\.\w+)*)(?=:| must\b)", said)
        tree = known(self._parser, given_classes(with_long_names(self._args)))
        inside = [setting.name for setting in tree.values() if kind is not None and setting.chosen is kind]
        if match is None:
            return RefusedError(f"{inside[0]}: {said}") if len(inside) == 1 and inside != ["model"] else first
        names = [name for name in tree if f".{name}".endswith((f".{match[1]}", f".{match[1]}.name"))]
        for narrower in (inside, ["data"]):
            if len(names) > 1:
                names = [name for name in names if name.startswith(tuple(f"{group}." for group in narrower))] or names
        if len(names) == 1:
            return RefusedError(f"{names[0]}{said[match.end() :]}")
        return first

    def _build(self, kind: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return kind(*args, **kwargs)
        except (ValueError, TypeError) as error:
            self._failed = self._failed or (kind, error)
            raise


_TEMPERATURE = "model.criterion.temperature"
_KINDS = {kind.__name__: kind for kind in (AdaptiveTemperature, LearnedTemperature, PerplexityTemperature)}


def _defaults_again(args: Sequence[str]) -> list[str]:
    """Options with the defaults of the temperature's class where the parser would keep what another's was given.

    tau_min of an AdaptiveTemperature as that of a PerplexityTemperature holds τ⁰ of all anchors at one end.
    """
    name, others = given_to_others(args, _TEMPERATURE)
    of_kind = inspect.signature(_KINDS[name]).parameters if name in _KINDS else {}
    return [
        f"--{_TEMPERATURE}.{setting}={json.dumps(of_kind[setting].default)}"
        for setting in others
        if setting in of_kind and of_kind[setting].default is not inspect.Parameter.empty
    ]


def _joined(args: Sequence[str]) -> list[str]:
    """Options with the value behind them where that is a negative number which argparse takes for an option: -1e-3."""
    found: list[str] = []
    for argument in args:
        before = found[-1] if found else ""
        if argument.startswith("-") and not re.fullmatch(r"-\d+|-\d*\.\d+", argument) and before.startswith("--"):
            try:
                float(argument)
            except ValueError:
                pass
            else:
                if "=" not in before:
                    found[-1] = f"{before}={argument}"
                    continue
        found.append(argument)
    return found


def _of_channels(settings: Any) -> Any:
    """Settings of a temperature that reads channel vectors, which are as long as the global batch; else None."""
    name = settings.get("model.class_path")
    method = pydoc.locate(name) if isinstance(name, str) else None
    if isinstance(method, type) and issubclass(method, BarlowTwins):
        return settings.get("model.init_args.criterion.init_args.temperature.init_args")
    return None
