"""What data.views and data.augmentation mean together, given by recipes, files and the command line."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..data.views import MOST_VIEWS
from ..recipes import listed_views


def with_listed_views(parse: Callable[[list[str]], Any], args: Sequence[str]) -> Any:
    """The settings of `args`; a number of views is augmented as what a recipe or file lists, in turn.

    A number alone would take the recipe's augmentations away. Letters on the command line do, for they are asked for.

    Raises:
        ValueError: letters beside a list of views, which has augmentations of its own, or a number where groups with
            a count or a size are listed.
    """
    config = parse([*args])
    views = config.data.views
    lettered = any(argument.partition("=")[0] == "--data.augmentation" for argument in args)
    if isinstance(views, list) and lettered:
        raise ValueError(
            "data.augmentation must be left out where data.views lists views, which have augmentations of their own, "
            f"got {config.data.augmentation!r}; --data.views {len(views)} makes as many with these letters"
        )
    if lettered or not isinstance(views, int) or not 2 <= views <= MOST_VIEWS:
        return config
    listed = listed_views([Path(file) for option, file in itertools.pairwise(args) if option == "--config"])
    if not listed:
        return config
    if any({"count", "size"} & view.keys() for view in listed):
        raise ValueError(f"data.views must be groups where a recipe or file lists groups, got {views}")
    in_turn = [listed[place % len(listed)] for place in range(views)]
    return parse([*args, "--data.views", json.dumps(in_turn)])
