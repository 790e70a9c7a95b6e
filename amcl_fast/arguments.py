"""What the command line takes: the sub-commands of `amcl-fast` with their arguments. Nothing is run here."""

import argparse
from typing import Any, NoReturn

from . import __version__
from .argument_types import DATA, number, path, whole_number
from .data.scan.limits import DEFAULT_LIMITS
from .recipes import describe_recipes
from .runs.directory import EVALUATIONS, FINE_TUNINGS, LATEST
from .study.arguments import declare_study

_PRETRAIN = """\
Every setting of trainer, data and model can be given on top, with the name it has in the recipes:
  amcl-fast pretrain --recipe demo --trainer.max_epochs 3 --model.optimizer.lr 0.1
Short names of those that everyone gives: --epochs --batch-size --lr --devices --seed.
`amcl-fast pretrain --trainer.help` says what there is, as do --data.help, --model.help, --knn.help, --checkpoint.help,
--guard.help and --report.help; with --recipe they show its values. `--recipe demo --print_config` prints them all.
`amcl-fast recipes` lists the recipes, `amcl-fast recipes NAME` shows one.

recipes:
"""
_WEIGHTS = "run directory, checkpoint, or file written by export"


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line; how the whole command is used, --help says."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help says what there is\n")


def parser() -> argparse.ArgumentParser:
    """The parser of a command line; it tells the sub-command as `command`."""
    whole = _Parser(prog="amcl-fast", description="Adaptive multi-head contrastive learning.", allow_abbrev=False)
    whole.add_argument("--version", action="version", version=f"amcl-fast {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    declarations = (
        _declare_pretrain, _declare_recipes, _declare_evaluate, _declare_export, _declare_report, declare_study,
        _declare_pack, _declare_bench, _declare_doctor,
    )  # fmt: skip
    for declare in declarations:
        declare(commands)
    return whole


def _declare_pretrain(commands: Any) -> None:
    parser = commands.add_parser(
        "pretrain",
        help="train an encoder",
        description="Train an encoder by a recipe, or go on with a run that was stopped.",
        epilog=_PRETRAIN + describe_recipes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", metavar="NAME", help="one of the recipes below, or a YAML file of settings")
    parser.add_argument("--data", metavar="PATH", help=DATA)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=LATEST,
        metavar="RUN",
        help="go on with this run directory or checkpoint; alone: the latest run (of --recipe, if given); auto: with "
        "that of --run_dir, or begin it",
    )
    parser.add_argument(
        "--run_dir", "--run-dir", type=path, metavar="DIR", help="folder of a new run (default: runs/<recipe>-<time>)"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="go on with a run that names classes from outside amcl_fast, torch, torchvision and lightning",
    )


def _declare_recipes(commands: Any) -> None:
    parser = commands.add_parser(
        "recipes",
        help="list the recipes, or show the settings of one",
        description="List the recipes by framework and data set; with NAME, show the settings of that one and the "
        "files that they are of, as a file that --recipe and --config take.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a recipe, or a YAML file of settings")


def _declare_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="kNN and linear probe of an encoder, or fine-tuning",
        description="Measure a frozen encoder: weighted kNN, and a linear probe for every learning rate at once. With "
        "--fine_tune the encoder is trained as well, together with a linear classifier, once for every rate.",
        allow_abbrev=False,
    )
    parser.add_argument("weights", type=path, metavar="CKPT", help=_WEIGHTS)
    parser.add_argument("--data", metavar="PATH", help=f"{DATA} (default: what it was measured or trained on)")
    parser.add_argument(
        "--held_out", "--held-out", metavar="PATH", help="what to measure on, if no part of the data is for that"
    )
    parser.add_argument(
        "--size", type=whole_number, metavar="N", help="side of the images in pixels (default: as in training)"
    )
    parser.add_argument(
        "--crop_pct",
        "--crop-pct",
        type=number,
        metavar="F",
        help="share of the shorter side that is seen; 0.875: 224 pixels of 256 (default: as in training)",
    )
    for unit in DEFAULT_LIMITS._fields:
        parser.add_argument(
            f"--max_image_{unit}",
            f"--max-image-{unit}",
            type=whole_number,
            metavar="N",
            help="of an image; a larger one is left out and listed (default: as in training)",
        )
    parser.add_argument("--k", type=whole_number, metavar="N", help="neighbours of kNN (200)")
    parser.add_argument(
        "--epochs", type=whole_number, metavar="N", help="of the linear probe (100), or of fine-tuning (30)"
    )
    parser.add_argument(
        "--rates",
        type=number,
        nargs="+",
        metavar="LR",
        help="learning rates at batch 256 (0.01 to 30, eight of them; of fine-tuning three, which it tells)",
    )
    parser.add_argument(
        "--batch_size", "--batch-size", type=whole_number, default=256, metavar="N", help="of either (256)"
    )
    parser.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="linear probe on random crops and flips, anew every epoch, or on features computed once "
        "(default: crops and flips on a GPU, once on a CPU)",
    )
    parser.add_argument("--half", action="store_true", default=None, help="keep features in float16: half the memory")
    parser.add_argument(
        "--output", type=path, metavar="FILE", help=f"JSON (default: {EVALUATIONS} or {FINE_TUNINGS} beside CKPT)"
    )
    tuning = parser.add_argument_group("fine-tuning")
    tuning.add_argument("--fine_tune", "--fine-tune", action="store_true", help="instead of kNN and linear probe")
    tuning.add_argument(
        "--label_fraction",
        "--label-fraction",
        type=number,
        metavar="F",
        help="share of the labels, always the same: 0.01 and 0.1 are the custom (1)",
    )
    tuning.add_argument(
        "--optimizer",
        metavar="NAME",
        help="sgd or adamw (sgd; adamw with 5 %% warm-up for encoders without batch normalisation)",
    )
    tuning.add_argument(
        "--weight_decay", "--weight-decay", type=number, metavar="F", help="(0 with sgd, 0.05 with adamw)"
    )
    tuning.add_argument(
        "--layer_decay",
        "--layer-decay",
        type=number,
        metavar="F",
        help="of the rate, from each layer to the one before (0.75 with adamw and models of timm)",
    )
    tuning.add_argument("--seed", type=whole_number, metavar="N", help="of crops, and of what the encoder draws (0)")
    tuning.add_argument(
        "--save_encoder", "--save-encoder", type=path, metavar="FILE", help="safetensors of the best one, as of export"
    )
    _declare_trust(parser)


def _declare_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write an encoder for other programs",
        description="Write the backbone as safetensors, with torchvision's or timm's names, or as ONNX; with --hub as "
        "a folder that timm's hf-hub: loads.",
        allow_abbrev=False,
    )
    parser.add_argument("weights", type=path, metavar="CKPT", help=_WEIGHTS)
    parser.add_argument(
        "--format", choices=("safetensors", "onnx"), help="(default: that of --output's suffix, or safetensors)"
    )
    parser.add_argument(
        "--output",
        type=path,
        metavar="PATH",
        help="ends in .FORMAT (default: backbone.FORMAT beside CKPT); with --hub a folder (default: hub beside CKPT)",
    )
    parser.add_argument(
        "--hub", metavar="NAME", help="write weights, config.json and a card for the hub's repository USER/MODEL"
    )
    parser.add_argument("--license", metavar="NAME", help="of the weights, for --hub's card (cc-by-4.0; default: none)")
    parser.add_argument("--push", action="store_true", help="upload what --hub has written")
    parser.add_argument("--private", action="store_true", help="a repository that --push makes is private")
    _declare_trust(parser)


def _declare_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust", action="store_true", help="import the class that CKPT names as its encoder")


def _declare_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="draw the report of a run again, or compare several",
        description="Draw the report of a run; of several runs, one page with all of them side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("run_dirs", type=path, nargs="+", metavar="RUN_DIR")
    parser.add_argument(
        "--output", type=path, metavar="DIR", help="folder of a comparison (default: comparison, beside the first run)"
    )


def _declare_pack(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="write images as shards, scaled or as they are",
        description="Write a folder of images, a list or shards as WebDataset's tars, train-000000.tar and so on, and "
        "what is held out as val-…; --data takes their folder. Stopped, it goes on with the same command.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, list, shards or a name, as --data of pretrain")
    parser.add_argument("target", type=path, metavar="TARGET", help="folder of the shards; empty or not there")
    parser.add_argument(
        "--shorter_side",
        "--shorter-side",
        type=whole_number,
        metavar="N",
        help="pixels to which a longer shorter side is scaled (default: none is)",
    )
    parser.add_argument(
        "--shard_size",
        "--shard-size",
        default="256MB",
        metavar="SIZE",
        help="of a shard at most: bytes, or a number of images (256MB)",
    )
    parser.add_argument(
        "--shuffle", action=argparse.BooleanOptionalAction, default=True, help="the training images, once (default)"
    )
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of that (0)")
    parser.add_argument(
        "--held_out", "--held-out", metavar="PATH", help="what to measure on, if no part of SOURCE is for that"
    )
    parser.add_argument("--workers", type=whole_number, metavar="N", help="processes (default: one for each core)")
    for unit, most in (("bytes", DEFAULT_LIMITS.bytes), ("pixels", DEFAULT_LIMITS.pixels)):
        parser.add_argument(
            f"--max_image_{unit}",
            f"--max-image-{unit}",
            type=whole_number,
            default=most,
            metavar="N",
            help=f"of an image; a larger one is left out and listed ({most:,})",
        )


def _declare_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure this machine; draw the benchmarks' report",
        description="Check every case against float64 and time it beside its peers. Results go to this machine's JSON.",
        allow_abbrev=False,
    )
    sections = ("operators", "pipeline", "training", "scaling", "scale", "all")
    parser.add_argument("section", nargs="?", choices=sections, default="all", help="what to measure (all)")
    parser.add_argument("--case", default="", metavar="SUBSTRING", help="only cases whose name holds this; prints only")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="of the operators (auto)")
    parser.add_argument("--seconds", type=number, metavar="S", help="of the rounds of each case (4; scale: 30 for kNN)")
    parser.add_argument(
        "--data", type=path, metavar="PATH", help="folder of photographs by class, for 224 pixels and for scale"
    )
    parser.add_argument("--images", type=whole_number, metavar="N", help="of scale (1281000, as ImageNet has)")
    parser.add_argument(
        "--queries", type=whole_number, metavar="N", help="of scale's kNN (50,000 for its target, or a pass)"
    )
    parser.add_argument(
        "--output", type=path, metavar="DIR", help="folder of the JSON (benchmarks/results if it exists, or else .)"
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--list", action="store_true", help="names of the cases for this machine")
    modes.add_argument(
        "--report",
        action="store_true",
        help="draw the tables of README.md and docs/ and docs/benchmarks/ from the JSON",
    )
    modes.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two JSON files; or two commits, measured here in turn, into the JSON",
    )


def _declare_doctor(commands: Any) -> None:
    commands.add_parser("doctor", help="versions, devices and backends", allow_abbrev=False)
