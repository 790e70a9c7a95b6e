"""Recipes: YAML for `amcl-fast pretrain --recipe NAME`.

A recipe is a file of this folder, or `<framework>-<dataset>-<variant>`, with `-<backbone>` where another encoder than
the data set's is trained, which is put together of parts:

    frameworks/<framework>              method, heads, optimiser
    datasets/<dataset>                  data, encoder, length of the training, evaluation
    combinations/<framework>-<dataset>  where that combination differs, if there is such a file
    backbones/<backbone>                encoder, and nothing else
    combinations/<framework>-<backbone>, <dataset>-<backbone>, <framework>-<dataset>-<backbone>     likewise
    variants/<framework>-<variant>      loss and number of heads
    combinations/<framework>-<dataset>-<variant>, <framework>-<variant>-<backbone>,
        <framework>-<dataset>-<variant>-<backbone>                                                  likewise

Later parts override earlier ones. A combination comes after the last of its parts: how long a data set is trained on
for a ResNet may differ for a ViT, and the loss is the variant's with any encoder. The first line of every file is a
comment that says what it is; `base` names parts or recipes on which a file builds, whose settings come first, in a
file given by --config or --recipe too. A name that begins with an underscore is only a base. A run's config.yaml holds
all of its settings.
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..extras import extras_named

__all__ = ["describe_recipes", "recipe_files", "recipe_names"]

FOLDER = Path(__file__).parent

OF_A_RUN = {"seed_everything", "recipe", "trainer", "data", "model", "knn", "checkpoint", "guard", "report"}
"""In every config.yaml of a run, which has all settings of its bases, whose names may have changed since."""

FRAMEWORKS = ("simclr", "moco", "simsiam", "barlow", "can")

VARIANTS = {
    "baseline": "one head, constant temperature",
    "released": "AMCL as its authors released it, for the data sets they released it for, and builtin",
    "amcl": "AMCL with temperatures that stay adaptive",
    "best": "what measured best on small images (docs/temperatures.md); for SimSiam and Barlow Twins the baseline",
}

DATASETS = {
    "builtin": tuple(VARIANTS),
    "cifar10": tuple(VARIANTS),
    "cifar10mini": tuple(VARIANTS),
    "cifar100": tuple(VARIANTS),
    "stl10": tuple(VARIANTS),
    "imagenet100": ("baseline", "amcl", "best"),
    "imagenet1k": ("baseline", "amcl", "best"),
}

_SMALL_IMAGES = ("builtin", "cifar10", "cifar100")
_IMAGENET = ("imagenet100", "imagenet1k")
BACKBONES: dict[str, tuple[str, ...]] = {
    "vitxs4": _SMALL_IMAGES,
    "vitxs8": _SMALL_IMAGES,
    "vitti4": _SMALL_IMAGES,
    "vits16": _IMAGENET,
    "vitb16": _IMAGENET,
}
"""Encoders beside those of the data sets: name to the data sets for which each is offered."""


def recipe_names() -> list[str]:
    """Names of the recipes that can be run: the files, then the combinations."""
    combined = [f"{f}-{d}-{v}" for f in FRAMEWORKS for d, of in DATASETS.items() for v in of if _has(f, v)]
    return (
        _named()
        + combined
        + [f"{name}-{b}" for b, of in BACKBONES.items() for name in combined if _dataset(name) in of]
    )


class RecipeOfFile(str):
    """A recipe that is a file of settings: its name, as that of a recipe of this folder, is the file's without suffix.

    Attributes:
        file: the file.
    """

    file: Path

    @classmethod
    def of(cls, file: Path) -> "RecipeOfFile":
        """The recipe that is `file`."""
        made = cls(file.stem)
        made.file = file
        return made


def given_recipe(given: str) -> str:
    """A recipe as a user gives it: a name, or the path of a file of settings that may have a `base`."""
    if given in recipe_names() or isinstance(given, RecipeOfFile):
        return given
    path = Path(os.path.expanduser(given))
    return RecipeOfFile.of(path) if path.suffix in (".yaml", ".yml") or path.is_file() else given


def recipe_files(name: str) -> list[Path]:
    """Files of a recipe in the order in which they apply.

    Args:
        name: as `given_recipe` has it.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: there is no such recipe, or a file is none of settings.
        ImportError: PyYAML is missing.
    """
    name = given_recipe(name)
    if isinstance(name, RecipeOfFile):
        return _of_file(name.file)
    if name not in recipe_names():
        close = difflib.get_close_matches(name, recipe_names(), n=4, cutoff=0.5)
        hint = f"close to it: {', '.join(close)}" if close else f"recipes: {recipes_in_short()}"
        raise ValueError(f"recipe must be the name of one, got {name!r}; {hint}")
    if name in _named():
        return _with_bases(name)
    f, d, v, *other = name.split("-")
    order = [f"frameworks/{f}", f"datasets/{d}", f"combinations/{f}-{d}"]
    if other:
        (b,) = other
        order += [f"backbones/{b}", *(f"combinations/{parts}-{b}" for parts in (f, d, f"{f}-{d}"))]
    order += [f"variants/{f}-{v}", f"combinations/{f}-{d}-{v}"]
    order += [f"combinations/{parts}-{b}" for b in other for parts in (f"{f}-{v}", f"{f}-{d}-{v}")]
    return [path for part in order if _path(part).is_file() for path in _with_bases(part)]


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


def recipes_in_short() -> str:
    """The files by name, and how the others are put together."""
    return f"{', '.join(_named())}, {_PATTERN}"


def listed_views(files: Sequence[Path]) -> list[Any]:
    """data.views of the last of the files of settings that has a list of them; empty if none has."""
    with extras_named("a recipe"):
        import yaml
    found: list[Any] = []
    for file in files:
        held = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else None
        views = (held.get("data") or {}).get("views") if isinstance(held, dict) else None
        found = views if isinstance(views, list) else found
    return found


def describe_recipes() -> str:
    """One line per file, then what can be combined."""
    described = {
        **VARIANTS,
        **{name: f"{title(f'backbones/{name}')} ({', '.join(of)})" for name, of in BACKBONES.items()},
    }
    width = max(map(len, [*_named(), *described]))
    lines = [f"  {name:<{width}}  {title(name)}" for name in _named()]
    lines += [f"  {_PATTERN}, of", f"    {', '.join(FRAMEWORKS)}", f"    {', '.join(DATASETS)}"]
    return "\n".join(lines + [f"    {name:<{width}}  {meaning}" for name, meaning in described.items()])


_PATTERN = "<framework>-<dataset>-<variant>[-<backbone>]"


def _dataset(name: str) -> str:
    return name.split("-")[1]


def title(part: str) -> str:
    """What a file of this folder is, by its name: its first line."""
    return _path(part).read_text("utf-8").splitlines()[0].lstrip("# ")


def _has(framework: str, variant: str) -> bool:
    """Nothing was released for CAN."""
    return _path(f"variants/{framework}-{variant}").is_file()


def _named() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("_"))


def _parts() -> list[str]:
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def _path(part: str) -> Path:
    return FOLDER / f"{part}.yaml"


def _of_file(file: Path) -> list[Path]:
    """A file of settings after those on which it builds; a run's config.yaml, which has all of its own, builds on none.

    Raises:
        OSError, ValueError: as `read_settings`, and ValueError for a base that is none.
    """
    with extras_named("a recipe"):
        import yaml  # noqa: F401  # not at the top: as below
    from ..runs.settings import read_settings

    if not file.exists():
        raise FileNotFoundError(f"--recipe must be a file that is there, or the name of a recipe, got {file}")
    settings = read_settings(file)
    try:
        return [file] if settings.keys() >= OF_A_RUN else [*base_files(settings.get("base")), file]
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _with_bases(part: str) -> list[Path]:
    with extras_named("a recipe"):
        import yaml  # not at the top: the names of the recipes are known without it
    return [*base_files(yaml.safe_load(_path(part).read_text("utf-8")).get("base")), _path(part)]
