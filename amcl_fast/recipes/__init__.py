"""Recipes: YAML for `amcl-fast pretrain --recipe NAME`.

A recipe is a file of this folder, or `<framework>-<dataset>-<variant>`, which is put together of parts:

    frameworks/<framework>              method, heads, optimiser
    datasets/<dataset>                  data, encoder, length of the training, evaluation
    combinations/<framework>-<dataset>  where that combination differs, if there is such a file
    variants/<framework>-<variant>      loss and number of heads
    combinations/<framework>-<dataset>-<variant>    likewise

Later parts override earlier ones. The first line of every file is a comment that says what it is; `base` names
parts or recipes on which a file builds, whose settings come first, in a file given by --config too. A name that
begins with an underscore is only a base. A run's config.yaml holds all of its settings.
"""

import difflib
from pathlib import Path

from ..extras import extras_named

__all__ = ["describe_recipes", "recipe_files", "recipe_names"]

FOLDER = Path(__file__).parent

FRAMEWORKS = ("simclr", "moco", "simsiam", "barlow")

VARIANTS = {
    "baseline": "one head, constant temperature",
    "released": "AMCL as its authors released it, for the data sets they released it for, and builtin",
    "amcl": "AMCL with temperatures that stay adaptive",
}

DATASETS = {
    "builtin": tuple(VARIANTS),
    "cifar10": tuple(VARIANTS),
    "cifar100": tuple(VARIANTS),
    "stl10": tuple(VARIANTS),
    "imagenet100": ("baseline", "amcl"),
    "imagenet1k": ("baseline", "amcl"),
}


def recipe_names() -> list[str]:
    """Names of the recipes that can be run: the files, then the combinations."""
    combined = [f"{f}-{d}-{v}" for f in FRAMEWORKS for d, variants in DATASETS.items() for v in variants]
    return _named() + combined


def recipe_files(name: str) -> list[Path]:
    """Files of a recipe in the order in which they apply.

    Raises:
        ValueError: there is no such recipe.
        ImportError: PyYAML is missing.
    """
    if name not in recipe_names():
        close = difflib.get_close_matches(name, recipe_names(), n=4, cutoff=0.5)
        hint = f"close to it: {', '.join(close)}" if close else f"recipes: {', '.join(_named())}, {_PATTERN}"
        raise ValueError(f"recipe must be the name of one, got {name!r}; {hint}")
    if name in _named():
        return _with_bases(name)
    framework, dataset, variant = name.split("-")
    files = [*_with_bases(f"frameworks/{framework}"), *_with_bases(f"datasets/{dataset}")]
    own = (f"combinations/{framework}-{dataset}", f"variants/{framework}-{variant}", f"combinations/{name}")
    return files + [path for path in map(_path, own) if path.is_file()]


def base_files(base: object) -> list[Path]:
    """Files of what a file of settings names as its `base`, one name or several, in the order in which they apply.

    Raises:
        ValueError: a name is neither a recipe's nor that of a part of one.
        ImportError: PyYAML is missing.
    """
    names = [base] if isinstance(base, str) else [] if base is None else base
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"base must name recipes or parts of them, got {base!r}")
    found: list[Path] = []
    for name in names:
        if name in recipe_names():
            found += recipe_files(name)
        elif name in _parts():
            found += _with_bases(name)
        else:
            known = dict.fromkeys([*_parts(), *recipe_names()])
            close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
            hint = f"close to it: {', '.join(close)}" if close else f"parts: {', '.join(_parts())}"
            raise ValueError(f"base must name recipes or parts of them, got {name!r}; {hint}")
    return found


def describe_recipes() -> str:
    """One line per file, then what can be combined."""
    width = max(map(len, [*_named(), *VARIANTS]))
    lines = [f"  {name:<{width}}  {_path(name).read_text().splitlines()[0].lstrip('# ')}" for name in _named()]
    lines += [f"  {_PATTERN}, of", f"    {', '.join(FRAMEWORKS)}", f"    {', '.join(DATASETS)}"]
    return "\n".join(lines + [f"    {name:<{width}}  {meaning}" for name, meaning in VARIANTS.items()])


_PATTERN = "<framework>-<dataset>-<variant>"


def _named() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("_"))


def _parts() -> list[str]:
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def _path(part: str) -> Path:
    return FOLDER / f"{part}.yaml"


def _with_bases(part: str) -> list[Path]:
    with extras_named("a recipe"):
        import yaml  # not at the top: the names of the recipes are known without it
    return [*base_files(yaml.safe_load(_path(part).read_text()).get("base")), _path(part)]
