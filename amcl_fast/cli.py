"""The command line: `amcl-fast pretrain | report | doctor`.

Sub-commands import what they need when they run, so that `doctor` works where the trainer cannot be imported.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .recipes import describe_recipes

LATEST = "latest"

_PRETRAIN = """\
Every setting of trainer, data and model can be given on top, with the name it has in the recipes:
  amcl-fast pretrain --recipe demo --trainer.max_epochs 3 --model.optimizer.lr 0.1
`amcl-fast pretrain --recipe demo --print_config` prints them all with their values.

recipes:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's); returns the exit code."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "pretrain":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "doctor":
        from .doctor import main as doctor

        return doctor()
    if arguments.command == "report":
        from .report import write_report

        try:
            print(write_report(arguments.run))
        except (ValueError, OSError) as error:
            print(f"amcl-fast report: error: {error}", file=sys.stderr)
            return 2
        return 0
    from .pretrain import SettingsError, pretrain

    try:
        return pretrain(
            recipe=arguments.recipe,
            data=arguments.data,
            resume=arguments.resume,
            run_dir=arguments.run_dir,
            settings=rest,
        )
    except SettingsError as error:
        print(f"amcl-fast pretrain: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amcl-fast", description="Adaptive multi-head contrastive learning.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    pretrain = commands.add_parser(
        "pretrain",
        help="train an encoder",
        description="Train an encoder by a recipe, or go on with a run that was stopped.",
        epilog=_PRETRAIN + describe_recipes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    pretrain.add_argument("--recipe", metavar="NAME", help="one of the recipes below")
    pretrain.add_argument(
        "--data", metavar="PATH", help="folder of images by class, or builtin, cifar10, cifar100, stl10"
    )
    pretrain.add_argument(
        "--resume",
        nargs="?",
        const=LATEST,
        metavar="RUN",
        help="go on with this run directory or checkpoint; alone: the latest run (of --recipe, if given)",
    )
    pretrain.add_argument(
        "--run_dir", type=Path, metavar="DIR", help="folder of a new run (default: runs/<recipe>-<time>)"
    )

    report = commands.add_parser("report", help="draw the report of a run again", allow_abbrev=False)
    report.add_argument("run", type=Path, metavar="RUN_DIR")

    commands.add_parser("doctor", help="versions, devices and backends", allow_abbrev=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
