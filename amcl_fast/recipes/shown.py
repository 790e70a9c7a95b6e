"""What `amcl-fast recipes` prints: which recipes there are, and the settings of one with where each stands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..extras import extras_named
from . import BACKBONES, DATASETS, FOLDER, FRAMEWORKS, given_recipe, recipe_files, recipe_names, title

# One setting each, though values by name: a later file replaces them whole.
_VALUES = ("arguments",)


def listed() -> str:
    """All recipes by framework and data set, with what each of their parts is."""
    names = recipe_names()
    made = [name for name in names if name.split("-")[0] in FRAMEWORKS]
    lines = ["Recipes, for amcl-fast pretrain --recipe NAME:", ""]
    single = [name for name in names if name not in made]
    width = max(map(len, single)) + 2
    lines += [f"  {name:<{width}}{title(name)}" for name in single]
    for framework in FRAMEWORKS:
        lines += ["", f"  {framework}: {title(f'frameworks/{framework}')}"]
        for dataset, variants in DATASETS.items():
            own = [f"{framework}-{dataset}-{variant}" for variant in variants]
            lines.append(f"    {dataset:<13}{'  '.join(name for name in own if name in made)}")
    lines += ["", "  With another encoder, as -NAME behind any of these:"]
    lines += [f"    {name:<13}{title(f'backbones/{name}')} ({', '.join(of)})" for name, of in BACKBONES.items()]
    lines += ["", "amcl-fast recipes NAME shows the settings of one, and the file in which each stands."]
    return "\n".join(lines)


def composed(recipe: str) -> tuple[list[Path], dict[tuple[str, ...], tuple[Any, Path]]]:
    """The files of a recipe, and its settings: path of names to the value and the file that it is of.

    Raises:
        ValueError: there is no such recipe.
    """
    with extras_named("a recipe"):
        import yaml
    files = recipe_files(recipe)
    found: dict[tuple[str, ...], tuple[Any, Path]] = {}
    for file in files:
        held = yaml.safe_load(file.read_text("utf-8"))
        for path, value in _flat({key: of for key, of in held.items() if key != "base"}):
            # What stood there before: a value in place of a group, and settings of another class.
            above = [path[:end] for end in range(1, len(path))]
            other = path[-1] == "class_path" and found.get(path, (value,))[0] != value
            gone = [*above, *(each for each in found if each[: len(path)] == path and each != path)]
            gone += [each for each in found if other and each[: len(path)] == (*path[:-1], "init_args")]
            for each in gone:
                found.pop(each, None)
            found[path] = value, file
    return files, found


def written(recipe: str) -> str:
    """The settings of a recipe as a file that --config takes, each with the file that it is of as a comment."""
    with extras_named("a recipe"):
        import yaml
    files, settings = composed(recipe)
    names = {file: _shown(file) for file in files}
    width = max(map(len, names.values())) + 2
    lines = [f"# {given_recipe(recipe)}, put together of these files of {FOLDER}, the later over the earlier:"]
    lines += [f"#   {name:<{width}}{_first_line(file)}" for file, name in names.items()]
    before: tuple[str, ...] = ()
    for path, (value, file) in sorted(settings.items(), key=_order(settings)):
        alike = next((n for n, (a, b) in enumerate(zip(path, before, strict=False)) if a != b), len(before))
        lines += ["  " * depth + f"{path[depth]}:" for depth in range(alike, len(path) - 1)]
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("\n...\n")
        line = "  " * (len(path) - 1) + f"{path[-1]}: {text.strip()}"
        lines.append(f"{line:<{max(60, len(line) + 2)}}# {names[file].removesuffix('.yaml')}")
        before = path
    return "\n".join(lines)


def _order(settings: dict[tuple[str, ...], Any]) -> Any:
    """Groups together, in the order in which their first setting stands in the files."""
    first: dict[tuple[str, ...], int] = {}
    for place, path in enumerate(settings):
        for end in range(1, len(path) + 1):
            first.setdefault(path[:end], place)
    # class_path before the settings of the class.
    return lambda item: [(item[0][end - 1] != "class_path", first[item[0][:end]]) for end in range(1, len(item[0]) + 1)]


def _flat(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and item and key not in _VALUES:
            yield from _flat(item, (*path, key))
        else:
            yield (*path, key), item


def _shown(file: Path) -> str:
    return str(file.relative_to(FOLDER)) if file.is_relative_to(FOLDER) else str(file)


def _first_line(file: Path) -> str:
    first = next(iter(file.read_text("utf-8").splitlines()), "")
    return first.lstrip("# ") if first.startswith("#") else ""
