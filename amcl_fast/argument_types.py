"""What several commands take alike, as the command line reads and describes it."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .setting_types import LARGEST_WHOLE, shown

N = TypeVar("N", int, float)

DATA = (
    "folder of images, by class or not; text or CSV file of paths; folder, pattern ('train-{000000..001023}.tar') or "
    "list of WebDataset's tars; or builtin, cifar10, cifar100, stl10"
)


def whole_number(text: str) -> int:
    """A whole number of the command line that 64 bits hold."""
    return _number(int, "a whole number", text)


def number(text: str) -> float:
    """A finite number of the command line."""
    return _number(float, "a finite number", text)


def _number(kind: Callable[[str], N], said: str, text: str) -> N:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not abs(value) <= (LARGEST_WHOLE if kind is int else sys.float_info.max):
        raise argparse.ArgumentTypeError(f"must be {said}, got {shown(text)}")
    return value


def path(text: str) -> Path:
    """A path of the command line, with the home folder in place of ~."""
    from .paths import expanded

    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
