"""Studies as the command line gives them."""

import argparse
from collections.abc import Mapping
from typing import Any

from . import augmentations, comparison, epochs, similarities
from .comparison import Comparison, Given
from .heads import heads
from .temperatures import temperatures
from .top_k import top_k


def carry_out(arguments: argparse.Namespace, about: Mapping[str, Any]) -> None:
    """Carry out the study that `arguments` describe, as `amcl_fast.arguments` declares them.

    Args:
        arguments: of the command line, with `settings` of `pretrain`.
        about: `machine` and `environment`, for study.json.

    Raises:
        StopError, SettingsError, ValueError, OSError: as `comparison.run` and `epochs.run`.
    """
    of_trainings = {
        "seeds": tuple(arguments.seeds),
        "data": arguments.data,
        "settings": tuple(arguments.settings),
        "trust": arguments.trust,
    }
    if arguments.study == epochs.NAME:
        study = epochs.Epochs(
            framework=arguments.framework,
            dataset=arguments.dataset,
            backbones=tuple(arguments.backbones),
            variants=tuple(arguments.variants),
            **of_trainings,
        )
        epochs.run(study, arguments.output, about)
    elif arguments.study == augmentations.NAME:
        sets, numbers = tuple(arguments.augmentations), tuple(arguments.heads)
        of_sets = augmentations.Augmentations(arguments.recipe, sets, numbers, **of_trainings)
        augmentations.run(of_sets, arguments.output, about)
    elif arguments.study == similarities.NAME:
        recipes = similarities.given_recipes(arguments.recipes, arguments.framework, arguments.dataset)
        similarities.run(similarities.Similarities(recipes, **of_trainings), arguments.output, about)
    else:
        comparison.run(_compared(arguments, Given(arguments.recipe, **of_trainings)), arguments.output, about)


def _compared(arguments: argparse.Namespace, given: Given) -> Comparison:
    if arguments.study == "temperatures":
        return temperatures(
            given,
            constants=arguments.constants,
            means=arguments.means,
            perplexity=arguments.perplexity,
            reference=arguments.reference,
            names=arguments.cells,
        )
    if arguments.study == "heads":
        differing = arguments.differing
        if "none" in differing and len(differing) > 1:
            raise ValueError(f"--differing must be none alone, or others without it, got {' '.join(differing)}")
        differing = [] if "none" in differing else differing
        return heads(
            given,
            numbers=arguments.heads,
            differing=differing,
            differing_heads=arguments.differing_heads,
            mean=arguments.mean,
        )
    return top_k(given, shares=arguments.shares)
