"""Recipes as the command line puts them together."""

from amcl_fast.pretraining.lightning_cli import PretrainCLI
from amcl_fast.recipes import recipe_files


def build(name, folder, *settings):
    """What a recipe and further settings make, before anything is trained."""
    files = [argument for path in recipe_files(name) for argument in ("--config", str(path))]
    return PretrainCLI([*files, *settings], folder / "run", None)
