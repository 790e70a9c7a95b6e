"""What several commands take alike, as the command line reads and describes it."""

import argparse
from pathlib import Path

DATA = (
    "folder of images, by class or not; text or CSV file of paths; folder, pattern ('train-{000000..001023}.tar') or "
    "list of WebDataset's tars; or builtin, cifar10, cifar100, stl10"
)


def path(text: str) -> Path:
    """A path of the command line, with the home folder in place of ~."""
    from .paths import expanded

    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
