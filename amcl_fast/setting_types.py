"""Types of settings: in words, and whether a value is of one."""

import math
import re
from collections import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a group of values by name, {name: value}",
    Any: "anything",
}
_SEVERAL = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts"}


def in_words(hint: Any) -> str:
    """What a type accepts, as a user may give it: `a whole number or null`."""
    parts = list(dict.fromkeys(_parts(hint)))
    if _WORDS[int] in parts and _WORDS[float] in parts:
        parts.remove(_WORDS[int])
    # Words first, values after them, null last.
    values = [part for part in parts if part not in _WORDS.values() and not part.startswith("a ")]
    values.sort(key=lambda part: part == "null")
    words = [part for part in parts if part not in values]
    if len(values) > 3:
        values = [f"one of {', '.join(values)}"]
    *first, last = words + values
    return f"{', '.join(first)} or {last}" if first else last


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; a whole number is a number too, a truth value is neither, a list may be a tuple.

    Types of other kinds than `in_words` has words for are left to their owners.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    if origin is dict:
        return isinstance(value, Mapping)
    if origin is tuple:
        whole = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == len(args)
        return whole and all(fits(item, arg) for item, arg in zip(value, args, strict=True))
    return True


def check_fields(config: Any, group: str = "") -> None:
    """Raise for a field of a dataclass whose value is not of its type, or is NaN.

    Args:
        config: an instance.
        group: what its settings are called together, such as `optimizer`.

    Raises:
        TypeError: it is of another type.
        ValueError: it is of the type, but none of the values that there are, or NaN.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        check_value(f"{group}.{field.name}" if group else field.name, getattr(config, field.name), hints[field.name])


def check_value(name: str, value: Any, hint: Any) -> None:
    """`check_fields` for one value of a setting."""
    if not fits(value, hint):
        # A text among others that was not meant is a wrong value, as 0 would be.
        kinds = [type(arg) for arg in get_args(hint)] if get_origin(hint) is Literal else []
        error = ValueError if type(value) in kinds else TypeError
        raise error(f"{name} must be {in_words(hint)}, got {value!r}")
    if has_nan(value):
        raise ValueError(f"{name} must be {in_words(hint)}, got {shown(value)}")


def has_nan(value: Any) -> bool:
    """Whether a value is NaN, or a list that holds one."""
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, list | tuple) and any(map(has_nan, value))


def shown(value: Any) -> str:
    """A value as settings have it, in one line of at most 80 characters."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = " ".join((value if isinstance(value, str) and value.strip() else repr(value)).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def first_sentence(text: str) -> str:
    """The first sentence of a docstring's entry, without the markup of its page."""
    plain = re.sub(r":\w+:`~?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", " ".join(text.split())).replace("`", "")
    return re.split(r"(?<=[.;:])\s+(?=[A-Z(])|;\s", plain, maxsplit=1)[0].rstrip(".;: ")


def _parts(hint: Any) -> Iterable[str]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for arg in args:
            yield from _parts(arg)
    elif origin is Literal:
        yield from map(shown, args)
    elif hint is bool:
        yield from ("true", "false")
    elif hint is NoneType:
        yield "null"
    elif origin is tuple:
        kind = in_words(args[0])
        yield f"a list of {len(args)} {_SEVERAL.get(kind, kind)}"
    elif origin in (list, abc.Iterable, abc.Sequence):
        kind = in_words(args[0]) if args else "values"
        yield (
            "a list of groups of settings"
            if is_dataclass(args[0])
            else f"a list of {_SEVERAL.get(kind, kind.replace('a ', '', 1))}"
        )
    elif hint in _WORDS or origin in _WORDS:
        yield _WORDS[hint if hint in _WORDS else origin]
    else:
        name = getattr(hint, "__name__", str(hint))
        yield f"{'an' if name[0] in 'AEIO' else 'a'} {name}"
