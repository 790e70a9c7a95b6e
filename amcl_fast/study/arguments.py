"""What `amcl-fast study` takes. Nothing is run here, and nothing imported that takes time."""

import argparse
from typing import Any

from ..argument_types import DATA, number, path, whole_number

_EPOCHS = """\
Settings of pretrain can be given on top, for all trainings: --trainer.max_epochs 4 --trainer.devices 8
kNN is measured after every epoch of fewer than 40, and 20 times or more in longer trainings; --knn.every_n_epochs N.
More --seeds, --variants or --backbones may be added later.
CAN on ImageNet-1k, on paper: 4 h (vits16) or 7.4 h (vitb16) a training of 100 epochs on 8 H100 (docs/studies.md).
"""
_COMPARISON = """\
Settings of pretrain can be given on top, for all trainings: --trainer.max_epochs 4 --data.limit 10000
More --seeds may be added later. Measured of each: kNN and a ridge regression, as BatchNorm ran and recalibrated.
One H100, estimates: ResNet-50 at 224 px trains 2,071 images/s (measured; docs/studies.md): 17 h for 100 epochs of
ImageNet-1k, each cell and seed. ResNet-18 on CIFAR-10 (32 px, stem small): some 15,000 images/s on paper, 11 min for
200 epochs, each cell and seed.
"""
_SIMILAR = """\
Settings of pretrain can be given on top, for all trainings: --trainer.max_epochs 4 --trainer.devices 8
2,048 pairs are looked at before and after each training, or all if there are fewer; --report.pairs N.
One H100, an estimate: ResNet-18 on CIFAR-10 (32 px, stem small) trains some 15,000 images/s on paper, 11 min for 200
epochs, each cell and seed: {took}.
"""


def declare_study(commands: Any) -> None:
    """Declare `study` and the studies below it."""
    study = commands.add_parser(
        "study",
        help="many trainings as one figure of the paper",
        description="A figure of the paper from trainings of your own: STUDY --help says what each takes.",
        allow_abbrev=False,
    )
    studies = study.add_subparsers(dest="study", required=True, metavar="STUDY")
    epochs = studies.add_parser(
        "epochs",
        help="accuracy over epochs of several backbones, the baseline beside AMCL (Figure 4)",
        description="Train <framework>-<dataset>-<variant>[-<backbone>] for all of these, seed by seed, and draw kNN "
        "accuracy over epochs. Stopped, it goes on with the same command.",
        epilog=_EPOCHS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    epochs.add_argument("--framework", required=True, metavar="NAME", help="of the recipes")
    epochs.add_argument("--dataset", default="builtin", metavar="NAME", help="of the recipes (builtin)")
    epochs.add_argument(
        "--backbones",
        nargs="+",
        default=["default"],
        metavar="NAME",
        help="of the recipes, a panel each; default: the recipes' own",
    )
    epochs.add_argument(
        "--variants",
        nargs="+",
        default=["baseline", "amcl"],
        metavar="NAME",
        help="of the recipes, a line each; the others are compared with the first (baseline amcl)",
    )
    _add_of_trainings(epochs, [0, 1, 2], "epochs-<framework>-<dataset>")
    for declare in (
        _declare_augmentations, _declare_similarities, _declare_temperatures, _declare_heads, _declare_top_k,
    ):  # fmt: skip
        declare(studies)


def _add_of_trainings(parser: Any, seeds: list[int], folder: str) -> None:
    """What every study takes of its trainings."""
    shown = " ".join(map(str, seeds))
    parser.add_argument("--seeds", type=whole_number, nargs="+", default=seeds, metavar="N", help=f"of each ({shown})")
    parser.add_argument("--data", metavar="PATH", help=f"{DATA} (default: the recipes')")
    parser.add_argument(
        "--output",
        type=path,
        metavar="DIR",
        help=f"folder of runs, study.json, figures and page (default: runs/{folder})",
    )
    parser.add_argument("--trust", action="store_true", help="as for pretrain, of trainings that go on")


def _add_comparison(studies: Any, name: str, help: str, description: str) -> Any:
    parser = studies.add_parser(
        name,
        help=help,
        description=f"{description}Trainings go seed by seed, each cell once; differences are of trainings of the same "
        "seed. Stopped,\nit goes on with the same command.",
        epilog=_COMPARISON,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", required=True, metavar="NAME", help="that all cells build on, or a YAML file")
    return parser


def _declare_temperatures(studies: Any) -> None:
    parser = _add_comparison(
        studies,
        "temperatures",
        "constants, perplexity, adaptive forms and the label oracle",
        "Train a SimCLR or MoCo recipe with other temperatures and all else alike: constants (constant-0.1 is the\n"
        "reference), one per anchor of a given perplexity (perplexity-0.07), AMCL's of each pair (pairwise), one per\n"
        "anchor that learns by the robust objective (row-dro), and negatives without those of the anchor's class\n"
        "(oracle).\n",
    )
    for name, default, help in (
        ("constants", [0.05, 0.07, 0.1, 0.2, 0.3], "temperatures, a cell each"),
        ("means", [0.07, 0.1], "of temperatures of a given perplexity, a cell each"),
    ):
        shown = " ".join(map(str, default))
        parser.add_argument(
            f"--{name}", type=number, nargs="+", default=default, metavar="TAU", help=f"{help} ({shown})"
        )
    parser.add_argument(
        "--perplexity", type=number, default=0.25, metavar="SHARE", help="of these, as a share of the negatives (0.25)"
    )
    parser.add_argument(
        "--reference", type=number, default=0.1, metavar="TAU", help="constant of the first cell and the oracle (0.1)"
    )
    parser.add_argument("--cells", nargs="+", metavar="NAME", help="beside the reference, these alone (default: all)")
    _add_of_trainings(parser, [0, 1, 2, 3, 4], "temperatures-<recipe>")


def _declare_heads(studies: Any) -> None:
    parser = _add_comparison(
        studies,
        "heads",
        "numbers of heads at equal projector size, and heads that differ (Figure 5)",
        "Train a recipe with other numbers of heads. Their hidden width is such that projectors have as many\n"
        "parameters as the recipe's, within 5 %. For SimCLR and MoCo also heads that differ: --differing.\n",
    )
    parser.add_argument(
        "--heads",
        type=whole_number,
        nargs="+",
        default=[1, 2, 3, 5],
        metavar="N",
        help="numbers, a cell each (1 2 3 5)",
    )
    parser.add_argument(
        "--differing",
        nargs="+",
        default=["perplexity", "means"],
        choices=("perplexity", "means", "constants", "none"),
        metavar="HOW",
        help="cells with other temperatures: perplexity, the same for all heads; means, a mean of its own for each; "
        "constants, a constant for each; none (perplexity means)",
    )
    parser.add_argument(
        "--differing_heads",
        "--differing-heads",
        type=whole_number,
        metavar="N",
        help="heads of these (default: the recipe's, or 3)",
    )
    parser.add_argument("--mean", type=number, metavar="TAU", help="of these (default: the recipe's constant, or 0.1)")
    _add_of_trainings(parser, [0, 1, 2, 3, 4], "heads-<recipe>")


def _declare_top_k(studies: Any) -> None:
    parser = _add_comparison(
        studies,
        "top-k",
        "how many of the hardest negatives the loss takes (Figure 5)",
        "Train a SimCLR or MoCo recipe with topk_softmax over so many of the hardest negatives, at its temperature;\n"
        "all of them are the reference.\n",
    )
    parser.add_argument(
        "--shares",
        type=number,
        nargs="+",
        default=[0.05, 0.1, 0.2, 0.5, 1.0],
        metavar="SHARE",
        help="of an anchor's negatives, a cell each; 1: all (0.05 0.1 0.2 0.5 1)",
    )
    _add_of_trainings(parser, [0, 1, 2, 3, 4], "top-k-<recipe>")


def _add_similar(studies: Any, name: str, help: str, description: str, took: str) -> Any:
    return studies.add_parser(
        name,
        help=help,
        description=f"{description}Trainings go seed by seed; differences are of trainings of the same seed. "
        "Stopped, it goes on with the same command.",
        epilog=_SIMILAR.format(took=took),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _declare_augmentations(studies: Any) -> None:
    parser = _add_similar(
        studies,
        "augmentations",
        "similarities with one to five augmentations, one head and several (Figure 1)",
        "Train a recipe with each of these sets of augmentations and numbers of heads, its loss as it is, and draw\n"
        "histograms of the similarities of positives and negatives, with their overlap as a number.\n",
        "30 by default, 5.5 hours",
    )
    sets = ["a", "ac", "acd", "acde", "abcde"]
    parser.add_argument("--recipe", required=True, metavar="NAME", help="that all build on, or a YAML file")
    parser.add_argument(
        "--augmentations",
        nargs="+",
        default=sets,
        metavar="LETTERS",
        help=f"a crop, b blur, c greyscale, d colour jitter, e flip, s solarisation: a column each ({' '.join(sets)})",
    )
    parser.add_argument(
        "--heads",
        type=whole_number,
        nargs="+",
        default=[1, 3],
        metavar="N",
        help="a row each; the others are compared with the first (1 3)",
    )
    _add_of_trainings(parser, [0, 1, 2], "augmentations-<recipe>")


def _declare_similarities(studies: Any) -> None:
    parser = _add_similar(
        studies,
        "similarities",
        "similarities and temperatures before and after training, by recipe (Figure 3)",
        "Train all variants of a framework and a data set, or --recipes, and draw the similarities of positives, of\n"
        "the hardest and of all negatives before and after training, and temperatures over similarity.\n",
        "12 with four variants, 2.2 hours",
    )
    parser.add_argument("--framework", metavar="NAME", help="of the recipes, all of whose variants are trained")
    parser.add_argument("--dataset", metavar="NAME", help="of the recipes, with --framework (builtin)")
    parser.add_argument(
        "--recipes",
        nargs="+",
        metavar="NAME",
        help="or YAML files, instead of --framework; the others are compared with the first",
    )
    _add_of_trainings(parser, [0, 1, 2], "similarities-<first recipe>")
