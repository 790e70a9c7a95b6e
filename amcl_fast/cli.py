"""The command line: `amcl-fast pretrain | evaluate | export | report | pack | bench | doctor`.

A sub-command is two functions: one that declares its arguments and one that runs it. What it needs is imported when
it runs, torch included: `doctor` works where the trainer cannot be imported, `--help` answers at once, and a Ctrl-C
during the imports finds somebody who takes it.
"""

import argparse
import atexit
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from .extras import require
from .recipes import describe_recipes
from .runs.directory import EVALUATIONS, LATEST
from .terminal import lasting_output, output_error

_PRETRAIN = """\
Every setting of trainer, data and model can be given on top, with the name it has in the recipes:
  amcl-fast pretrain --recipe demo --trainer.max_epochs 3 --model.optimizer.lr 0.1
`amcl-fast pretrain --recipe demo --print_config` prints them all with their values.

recipes:
"""
_DATA = (
    "folder of images, by class or not; text or CSV file of paths; folder, pattern ('train-{000000..001023}.tar') or "
    "list of WebDataset's tars; or builtin, cifar10, cifar100, stl10"
)
_WEIGHTS = "run directory, checkpoint, or file written by export"


_STOPPED = {
    "pretrain": "before the first step: nothing was saved; begin again with the same command",
    "pretrain --resume": "before the first step: the run is as it was; go on with the same command",
    "evaluate": "before its end: no result was written",
    "export": "before its end: no file was written",
    "report": "before its end: draw it again",
    "pack": "before its end: the shards that are whole stay; go on with the same command",
    "bench": "before its end: of the results, the sections that are said to be written are kept",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's); returns the exit code."""
    with lasting_output():
        try:
            code, output_is_all = _run(argv)
        except SystemExit as end:  # argparse's and jsonargparse's, of help and errors
            if end.code != 0 or not _untold("amcl-fast"):
                raise
            return 1
        finally:
            # The process is at its end, where a Ctrl-C has nothing to interrupt but the interpreter's own cleaning up.
            if argv is None and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return 1 if output_is_all and not code and _untold("amcl-fast") else code


def _run(argv: Sequence[str] | None) -> tuple[int, bool]:
    """Exit code of a command, and whether it leaves nothing but what it prints."""
    parser = argparse.ArgumentParser(
        prog="amcl-fast", description="Adaptive multi-head contrastive learning.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    declarations = (
        _declare_pretrain, _declare_evaluate, _declare_export, _declare_report, _declare_pack, _declare_bench,
        _declare_doctor,
    )  # fmt: skip
    for declare in declarations:
        declare(commands)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "pretrain":
        arguments.settings = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    resumes = arguments.command == "pretrain" and arguments.resume is not None
    stopped = _STOPPED.get(f"{arguments.command} --resume" if resumes else arguments.command, "before its end")
    arguments.told = f"amcl-fast {arguments.command}: stopped {stopped}"  # of a Ctrl-C
    output_is_all = arguments.command == "doctor" or (arguments.command == "bench" and arguments.list)
    with _LeavingAtOnce(arguments.told):
        try:
            return arguments.run(arguments), output_is_all
        except KeyboardInterrupt:
            print(arguments.told, file=sys.stderr)
            return 128 + signal.SIGINT, output_is_all


class _LeavingAtOnce:
    """Ends the process where a Ctrl-C comes, with `told` on stderr, until a command `begins`; then it is Python's own.

    Imports swallow a KeyboardInterrupt now and then, and there is nothing yet to clean up.
    """

    def __init__(self, told: str) -> None:
        self._told = told
        self._previous: Any = None

    def __enter__(self) -> None:
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if usual and threading.current_thread() is threading.main_thread():  # Python allows it there alone
            self._previous = signal.signal(signal.SIGINT, self._leave)

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _leave(self, signum: int, frame: object) -> None:
        with suppress(OSError):
            os.write(2, f"{self._told}\n".encode())
        os._exit(128 + signum)


def _begins() -> None:
    """From here on a Ctrl-C is a KeyboardInterrupt, which cleans up."""
    if isinstance(getattr(signal.getsignal(signal.SIGINT), "__self__", None), _LeavingAtOnce):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _untold(name: str) -> bool:
    """Whether output is lost for which nobody is to blame but the disk; stderr says so."""
    error = output_error()
    if error is not None:
        print(f"{name}: error: the output cannot be written: {error.strerror}", file=sys.stderr)
    return error is not None


def _in_one_line(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Print what the user can mend as one line, exit code 2; other errors are faults and show their traceback."""

    def run_and_tell(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except (ValueError, OSError, ImportError) as error:
            return _refuse(arguments.command, error)

    return run_and_tell


def _refuse(command: str, error: Exception) -> int:
    print(f"amcl-fast {command}: error: {error}", file=sys.stderr)
    return 2


def _path(text: str) -> Path:
    from .paths import expanded

    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _declare_pretrain(commands: Any) -> None:
    parser = commands.add_parser(
        "pretrain",
        help="train an encoder",
        description="Train an encoder by a recipe, or go on with a run that was stopped.",
        epilog=_PRETRAIN + describe_recipes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", metavar="NAME", help="one of the recipes below")
    parser.add_argument("--data", metavar="PATH", help=_DATA)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=LATEST,
        metavar="RUN",
        help="go on with this run directory or checkpoint; alone: the latest run (of --recipe, if given)",
    )
    parser.add_argument(
        "--run_dir", type=_path, metavar="DIR", help="folder of a new run (default: runs/<recipe>-<time>)"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="go on with a run that names classes from outside amcl_fast, torch, torchvision and lightning",
    )
    parser.set_defaults(run=_pretrain)


def _pretrain(arguments: argparse.Namespace) -> int:
    try:
        require(
            "training", "lightning", "jsonargparse", "yaml", "torchvision", "matplotlib", "tensorboard", "nvidia.dali"
        )
        from .pretrain import SettingsError, pretrain
    except ImportError as error:
        return _refuse("pretrain", error)
    _begins()

    def begun(run_dir: Path) -> None:
        go_on = f"amcl-fast pretrain --resume {shlex.quote(str(run_dir))}"
        arguments.told = f"amcl-fast pretrain: stopped; go on with: {go_on}"

    try:
        return pretrain(
            recipe=arguments.recipe,
            data=arguments.data,
            resume=arguments.resume,
            run_dir=arguments.run_dir,
            settings=arguments.settings,
            trust=arguments.trust,
            begun=begun,
        )
    except SettingsError as error:
        return _refuse("pretrain", error)


def _declare_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="kNN and linear probe of an encoder",
        description="Measure a frozen encoder: weighted kNN, and a linear probe for every learning rate at once.",
        allow_abbrev=False,
    )
    parser.add_argument("weights", type=_path, metavar="CKPT", help=_WEIGHTS)
    parser.add_argument("--data", metavar="PATH", help=f"{_DATA} (default: what it was trained on)")
    parser.add_argument("--held_out", metavar="PATH", help="what to measure on, if no part of the data is for that")
    parser.add_argument("--size", type=int, metavar="N", help="side of the images in pixels (default: as in training)")
    parser.add_argument(
        "--crop_pct",
        type=float,
        metavar="F",
        help="share of the shorter side that is seen; 0.875: 224 pixels of 256 (default: as in training)",
    )
    parser.add_argument("--k", type=int, default=200, metavar="N", help="neighbours of kNN (200)")
    parser.add_argument("--epochs", type=int, default=100, metavar="N", help="of the linear probe (100)")
    parser.add_argument(
        "--rates", type=float, nargs="+", metavar="LR", help="learning rates at batch 256 (0.01 to 30, eight of them)"
    )
    parser.add_argument("--batch_size", type=int, default=256, metavar="N", help="of the linear probe (256)")
    parser.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="linear probe on random crops and flips, anew every epoch, or on features computed once "
        "(default: crops and flips on a GPU, once on a CPU)",
    )
    parser.add_argument("--half", action="store_true", help="keep features in float16: half the memory")
    parser.add_argument("--output", type=_path, metavar="FILE", help=f"JSON (default: {EVALUATIONS} beside CKPT)")
    parser.set_defaults(run=_evaluate)


@_in_one_line
def _evaluate(arguments: argparse.Namespace) -> int:
    require("evaluation", "lightning", "torchvision", "tqdm", "nvidia.dali")
    from torch import OutOfMemoryError

    from .distributed import ElsewhereError
    from .evaluate.command import run
    from .evaluate.linear import RATES

    _begins()
    try:
        run(
            arguments.weights,
            data=arguments.data,
            held_out=arguments.held_out,
            size=arguments.size,
            crop_pct=arguments.crop_pct,
            k=arguments.k,
            epochs=arguments.epochs,
            rates=arguments.rates or RATES,
            batch_size=arguments.batch_size,
            augment=arguments.augment,
            half=arguments.half,
            output=arguments.output,
        )
    except ElsewhereError:  # the other process tells of it
        return 2
    except OutOfMemoryError as error:
        said = str(error).partition(". ")[0]
        return _refuse("evaluate", MemoryError(f"{said}; --half, a smaller --batch_size, or more processes take less"))
    except KeyboardInterrupt:
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            raise
        return 128 + signal.SIGINT  # the first process tells of it
    return 0


def _declare_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write an encoder for other programs",
        description="Write the backbone as safetensors, with torchvision's or timm's names, or as ONNX.",
        allow_abbrev=False,
    )
    parser.add_argument("weights", type=_path, metavar="CKPT", help=_WEIGHTS)
    parser.add_argument(
        "--format", choices=("safetensors", "onnx"), help="(default: that of --output's suffix, or safetensors)"
    )
    parser.add_argument(
        "--output", type=_path, metavar="FILE", help="ends in .FORMAT (default: backbone.FORMAT beside CKPT)"
    )
    parser.set_defaults(run=_export)


@_in_one_line
def _export(arguments: argparse.Namespace) -> int:
    output = arguments.output
    format: Literal["safetensors", "onnx"] = arguments.format or (
        "onnx" if output and output.suffix == ".onnx" else "safetensors"
    )
    require("export", "torchvision", *(("safetensors",) if format == "safetensors" else ("onnx", "onnxscript")))
    from .encoder import load_encoder
    from .export import export, loading_code

    _begins()
    path = export(arguments.weights, format=format, output=output)
    print(path)
    if format == "safetensors":
        print(f"\n{loading_code(load_encoder(path).config, str(path))}")
    return 0


def _declare_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="draw the report of a run again, or compare several",
        description="Draw the report of a run; of several runs, one page with all of them side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("run_dirs", type=_path, nargs="+", metavar="RUN_DIR")
    parser.add_argument(
        "--output", type=_path, metavar="DIR", help="folder of a comparison (default: comparison, beside the first run)"
    )
    parser.set_defaults(run=_report)


@_in_one_line
def _report(arguments: argparse.Namespace) -> int:
    require("a report", "matplotlib", "yaml")
    from .report import write_comparison, write_report

    _begins()
    if len(arguments.run_dirs) > 1:
        print(write_comparison(arguments.run_dirs, arguments.output))
    elif arguments.output:
        raise ValueError("--output is the folder of a comparison; the report of one run is written into its own")
    else:
        print(write_report(arguments.run_dirs[0]))
    return 0


def _declare_pack(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="write images as shards, scaled or as they are",
        description="Write a folder of images, a list or shards as WebDataset's tars, train-000000.tar and so on, and "
        "what is held out as val-…; --data takes their folder. Stopped, it goes on with the same command.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, list, shards or a name, as --data of pretrain")
    parser.add_argument("target", type=_path, metavar="TARGET", help="folder of the shards; empty or not there")
    parser.add_argument(
        "--shorter_side",
        type=int,
        metavar="N",
        help="pixels to which a longer shorter side is scaled (default: none is)",
    )
    parser.add_argument(
        "--shard_size", default="256MB", metavar="SIZE", help="of a shard at most: bytes, or a number of images (256MB)"
    )
    parser.add_argument(
        "--shuffle", action=argparse.BooleanOptionalAction, default=True, help="the training images, once (default)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of that (0)")
    parser.add_argument("--held_out", metavar="PATH", help="what to measure on, if no part of SOURCE is for that")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    parser.set_defaults(run=_pack)


@_in_one_line
def _pack(arguments: argparse.Namespace) -> int:
    from .data.pack import SKIPPED, pack
    from .paths import absolute_data
    from .runs.files import is_full

    _begins()
    try:
        packed = pack(
            absolute_data(arguments.source),
            arguments.target,
            shorter_side=arguments.shorter_side,
            shard_size=arguments.shard_size,
            shuffle=arguments.shuffle,
            seed=arguments.seed,
            held_out=arguments.held_out and absolute_data(arguments.held_out),
            workers=arguments.workers,
        )
    except OSError as error:
        if not is_full(error):
            raise
        print(f"amcl-fast pack: error: {error}; once there is room the same command goes on", file=sys.stderr)
        return 1
    print(
        f"{packed.images:,} images in {len(packed.shards):,} shards of {arguments.target}, {packed.bytes / 1e9:.2f} GB"
    )
    if packed.left_out:
        print(f"{len(packed.left_out):,} left out; listed in {arguments.target / SKIPPED}")
    return 0


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
    parser.add_argument("--seconds", type=float, metavar="S", help="of the rounds of each case (4; scale: 30 for kNN)")
    parser.add_argument(
        "--data", type=_path, metavar="PATH", help="folder of photographs by class, for 224 pixels and for scale"
    )
    parser.add_argument("--images", type=int, metavar="N", help="of scale (1281000, as ImageNet has)")
    parser.add_argument("--queries", type=int, metavar="N", help="of scale's kNN (50,000 for its target, or a pass)")
    parser.add_argument(
        "--output", type=_path, metavar="DIR", help="folder of the JSON (benchmarks/results if it exists, or else .)"
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
    parser.set_defaults(run=_bench)


@_in_one_line
def _bench(arguments: argparse.Namespace) -> int:
    from .benchmarks import command
    from .ops import BACKENDS

    _begins()
    if arguments.backend not in BACKENDS:
        raise ValueError(f"--backend must be one of {', '.join(BACKENDS)}, got {arguments.backend!r}")
    if arguments.list:
        command.list_cases()
        return 0
    if arguments.report:
        command.draw(arguments.output)
        return 0
    if arguments.compare:
        command.compare(*arguments.compare, arguments.case, arguments.backend, arguments.seconds, arguments.output)
        return 0
    sections = command.SECTIONS if arguments.section == "all" else (arguments.section,)
    passed = command.measure(
        sections,
        arguments.case,
        arguments.backend,
        arguments.seconds,
        arguments.data,
        arguments.output,
        arguments.images,
        arguments.queries,
    )
    return 0 if passed else 1


def _declare_doctor(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="versions, devices and backends", allow_abbrev=False)
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
