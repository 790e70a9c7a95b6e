"""Types of settings: in words, whether a value is of one, and how an error writes what was given."""

import math
import re
import sys
from collections import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
LARGEST_WHOLE = 2**63 - 1
"""The largest whole number that a setting may be."""
WIDEST = 2**31 - 1
"""The largest size of a tensor in one dimension: kernels count columns in 32 bits."""
_LONGEST = 30
"""Digits of a whole number that an error writes."""
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
        raise error(f"{name} must be {in_words(hint)}, got {written(value)}")
    if has_nan(value):
        raise ValueError(f"{name} must be {in_words(hint)}, got {shown(value)}")
    takes_any = float in (hint, *get_args(hint)) and int not in get_args(hint)
    check_held(name, value, sys.float_info.max if takes_any else LARGEST_WHOLE)


def check_held(name: str, value: Any, most: float = LARGEST_WHOLE) -> None:
    """Raise ValueError for a whole number larger than `most`, or a list with one: by default what 64 bits hold."""
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, int) and abs(number) > most:
            raise ValueError(f"{name} must be at most {most:.3g} in size, got {written(number)}")


def whole(name: str, value: Any, least: int, most: int = LARGEST_WHOLE, of: str = "") -> int:
    """A whole number from `least` to `most`, of numpy's too, as int.

    Args:
        name: of the argument.
        value: what was given.
        least, most: range.
        of: what the error says of the range beside it.

    Raises:
        TypeError: it is no whole number; a truth value is none.
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int{of}, got {written(value)}")
    number = int(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}{of}, got {written(number)}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}{of}, got {written(number)}")
    return number


def real(name: str, value: Any, least: float, most: float = sys.float_info.max, of: str = "") -> float:
    """A number from `least` to `most`, as float; arguments and errors as `whole`."""
    check_value(name, value, float)
    if not least <= value <= most:
        limits = f"finite and at least {least:g}" if most == sys.float_info.max else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} must be {limits}{of}, got {written(value)}")
    return float(value)


def one_of(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    """Raise ValueError for what is none of the words that are accepted, whatever it is."""
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{name} must be one of {accepted}, got {written(value)}")


@contextmanager
def fits_memory(**sizes: int) -> Iterator[None]:
    """A block that makes tensors of such sizes, by name, the first of which the error begins with.

    Raises:
        ValueError: there is no memory for them.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("allocate|out of memory|overflow", str(error)):
            raise
        given = ", ".join(f"{name}={written(size)}" for name, size in sizes.items())
        raise ValueError(f"{next(iter(sizes))} must be such that there is memory for it, got {given}") from error


def has_nan(value: Any) -> bool:
    """Whether a value is NaN, or a list that holds one."""
    if isinstance(value, Real):
        return bool(value != value)  # math.isnan knows no fraction that is larger than a float
    return isinstance(value, list | tuple) and any(map(has_nan, value))


def shown(value: Any) -> str:
    """A value as settings have it, in one line of at most 80 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _in_a_line(value) if isinstance(value, str) and value.strip() else written(value)


def written(value: Any) -> str:
    """A value as Python writes it, in one line of at most 80 characters, whatever it is: for "got …" of errors."""
    try:
        if isinstance(value, int) and abs(value) >= 10**_LONGEST:
            return f"a whole number of about {math.log10(abs(value)):.0f} digits"
        if getattr(value, "ndim", 0) and hasattr(value, "dtype"):
            return f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
        return _in_a_line(repr(value))
    except Exception:  # of a class of one's own, a nested tensor, a list of numbers too long for Python to write
        return f"a value of type {type(value).__name__}"


def _in_a_line(text: str) -> str:
    text = " ".join(text[:1000].split())
    # A terminal would obey the rest, or have no way to write it.
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
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
