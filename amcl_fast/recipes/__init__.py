"""Recipes: YAML for `amcl-fast pretrain --recipe NAME`.

The first line of a recipe is a comment that says what it is. `base: OTHER` builds on the recipe OTHER: its
settings come first. A name that begins with an underscore is only a base.
"""

from pathlib import Path

import yaml

FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Names of the recipes that can be run."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("_"))


def recipe_files(name: str) -> list[Path]:
    """Files of a recipe in the order in which they apply, its base first.

    Raises:
        ValueError: there is no such recipe.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"there is no recipe {name!r}; recipes: {', '.join(recipe_names())}")
    base = yaml.safe_load(path.read_text()).get("base")
    return [*(recipe_files(base) if base else []), path]


def describe_recipes() -> str:
    """One line per recipe: name and first comment."""
    width = max(map(len, recipe_names()))
    lines = []
    for name in recipe_names():
        first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
        lines.append(f"  {name:<{width}}  {first.lstrip('# ')}")
    return "\n".join(lines)
