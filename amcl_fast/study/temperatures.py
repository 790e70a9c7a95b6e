"""`amcl-fast study temperatures`: constants, perplexity, adaptive forms, and the label oracle, of one recipe."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..losses import SimCLRLoss
from .comparison import CRITERION, TEMPERATURE, Cell, Comparison, Given, contrast_of
from .course import check_different

NAME = "temperatures"

_ORACLES = {True: "amcl_fast.study.oracle.SimCLROracle", False: "amcl_fast.study.oracle.MoCoOracle"}
_LABELS = "--trainer.callbacks+=amcl_fast.study.oracle.Labels"


def temperatures(
    given: Given,
    *,
    constants: Sequence[float],
    means: Sequence[float],
    perplexity: float = 0.25,
    reference: float = 0.1,
    names: Sequence[str] | None = None,
) -> Comparison:
    """The study: the recipe's temperature is exchanged, and nothing else of it.

    Args:
        given: what every comparison takes.
        constants: each a cell, beside the reference.
        means: of `PerplexityTemperature`, each a cell.
        perplexity: its other setting.
        reference: constant of the first cell, and of the oracle.
        names: of cells that are wanted beside the reference; None: all.

    Raises:
        SettingsError, ValueError: the recipe has no such temperature, or there are no such cells.
    """
    for option, taus in (("constants", constants), ("means", means)):
        check_different(option, [f"{tau:g}" for tau in taus])  # as cells are called
    found = given.found()
    kind, arguments = contrast_of(found, NAME)
    dim = found["model"]["init_args"]["projector"]["dim"]
    first = _constant(reference)
    every = [
        first,
        *(cell for cell in map(_constant, constants) if cell.name != first.name),
        *(_perplexity(mean, perplexity) for mean in means),
        Cell(
            "pairwise",
            (TEMPERATURE, _adaptive(dim=dim, tau_min=0.1, tau_max=1.0, score="cosine")),
            "AMCL's, of each pair, by the bounded score of the amcl recipes, from 0.1 to 1, at a level of its own",
        ),
        Cell(
            "row-dro",
            (
                TEMPERATURE,
                _adaptive(dim=dim, tau_min=0.01, tau_max=1.0, share="row", objective="dro", rho=0.87, init=0.1),
            ),
            "one of each anchor, learned by the distributionally robust objective, rho 0.87, from 0.1 on, at a level "
            "of its own",
        ),
        Cell(
            "oracle",
            (*(CRITERION, _oracle(kind is SimCLRLoss, arguments, reference)), _LABELS),
            f"constant {reference:g}, negatives of the anchor's own class left out, which labels tell",
        ),
    ]
    if names is not None:
        check_different("cells", names)
        known = [cell.name for cell in every]
        if strange := [name for name in names if name not in known]:
            raise ValueError(f"--cells must be among {' '.join(known)}, got {strange[0]}")
        every = [first, *(cell for cell in every[1:] if cell.name in names)]
    return Comparison(
        NAME,
        given,
        tuple(every),
        "Temperatures",
        {
            "constants": tuple(constants),
            "means": tuple(means),
            "perplexity": perplexity,
            "reference": reference,
            "cells": None if names is None else tuple(names),
        },
        ("model.criterion.temperature", "model.criterion.class_path"),
    )


def _constant(tau: float) -> Cell:
    return Cell(f"constant-{tau:g}", (TEMPERATURE, repr(tau)), f"constant {tau:g}")


def _perplexity(mean: float, perplexity: float) -> Cell:
    about = f"one of each anchor, of perplexity {perplexity:g} of its negatives, the mean of 1/τ pinned to 1/{mean:g}"
    return Cell(f"perplexity-{mean:g}", (TEMPERATURE, of_perplexity(mean, perplexity)), about)


def of_perplexity(
    mean: float | list[float], perplexity: float = 0.25, tau_min: float = 0.01, tau_max: float = 1.0
) -> str:
    """A `PerplexityTemperature` as a setting; all arguments, for those of a recipe's own stay where none is given."""
    arguments = {"mean": mean, "perplexity": perplexity, "tau_min": tau_min, "tau_max": tau_max}
    return json.dumps({"class_path": "amcl_fast.PerplexityTemperature", "init_args": arguments})


def _adaptive(**given: Any) -> str:
    """An `AdaptiveTemperature` as a setting; all arguments, as above."""
    usual = {"hidden_dim": 128, "scale": 4.0, "offset": 0.0, "precision": "auto", "score": "dot", "share": "pair"}
    usual |= {"objective": "likelihood", "rho": None, "init": None}
    return json.dumps({"class_path": "amcl_fast.AdaptiveTemperature", "init_args": {**usual, **given}})


def _oracle(simclr: bool, arguments: Mapping[str, Any], tau: float) -> str:
    return json.dumps({"class_path": _ORACLES[simclr], "init_args": {**arguments, "temperature": tau}})
