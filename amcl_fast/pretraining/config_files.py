"""Files of settings on the command line: which it names, what they build on."""

import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from yaml import BaseLoader, YAMLError, load

from ..paths import expanded
from ..recipes import OF_A_RUN, base_files, given_recipe


def of_recipe(recipe: str | None, files: Sequence[Path]) -> list[str]:
    """The arguments that give a recipe, made of `files`."""
    args = [argument for file in files for argument in ("--config", str(file))]
    return args + (["--recipe", given_recipe(recipe)] if recipe else [])


def config_files(settings: Sequence[str]) -> list[tuple[int, str, str]]:
    """Files of settings that the command line names, in every form: where, what stands before the name, the name."""
    found = []
    for place, (before, setting) in enumerate(itertools.pairwise(["", *settings])):
        option, equals, value = setting.partition("=")
        if before in ("--config", "-c"):
            found.append((place, "", setting))
        elif equals and option in ("--config", "-c"):
            found.append((place, f"{option}=", value))
        elif setting.startswith("-c") and setting != "-c":
            found.append((place, "-c", setting[2:]))
    return found


def with_home(settings: Sequence[str]) -> list[str]:
    """Settings whose files of settings are named without a ~, which the shell leaves in --config=~/FILE."""
    found = list(settings)
    for place, before, name in config_files(settings):
        found[place] = f"{before}{expanded(name)}"
    return found


def with_bases(settings: Sequence[str]) -> list[str]:
    """Settings with the files that theirs name as `base`, each before the file that builds on it.

    Raises:
        ValueError: a name is none, or stands where no file builds on it.
    """
    if "--base" in {setting.partition("=")[0] for setting in settings}:
        raise ValueError(
            "--base must stand in a file given by --config, as base, got an option; --recipe names a recipe"
        )
    found = list(settings)
    for place, before, name in reversed(config_files(settings)):
        is_file = os.path.exists(name)
        held = None
        with suppress(YAMLError, RecursionError):  # of which the parser tells
            held = load(Path(name).read_text("utf-8") if is_file else name, BaseLoader)
        if not isinstance(held, dict) or held.keys() >= OF_A_RUN:
            continue
        base = held.get("base")
        try:
            bases = base_files(None if base in ("", "~", "null") else base)
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if is_file else str(error)) from None
        place -= not before  # --config itself
        found[place:place] = [part for path in bases for part in ("--config", str(path))]
    return found
