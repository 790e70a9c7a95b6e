"""The command line: `amcl-fast pretrain | recipes | evaluate | export | report | study | pack | bench | doctor`.

`arguments` says what each takes; here is what runs it. What it needs is imported when it runs, torch included:
`doctor` works where the trainer cannot be imported, `--help` answers at once, and a Ctrl-C during the imports finds
somebody who takes it.
"""

import argparse
import atexit
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Literal

from .arguments import parser
from .extras import require
from .home import spare_home
from .importing import Importing
from .progress import doing
from .terminal import lasting_output, output_error, short_warnings

_STOPPED = {
    "pretrain": "before the first step: nothing was saved; begin again with the same command",
    "pretrain --resume": "before the first step: the run is as it was; go on with the same command",
    "evaluate": "before its end: no result was written",
    "export": "before its end: no file was written",
    "report": "before its end: draw it again",
    "study": "before its next training; go on with the same command",
    "pack": "before its end: the shards that are whole stay; go on with the same command",
    "bench": "before its end: of the results, the sections that are said to be written are kept",
}

_OF_PROBES = ("k", "augment", "half")
_OF_FINE_TUNING = ("label_fraction", "optimizer", "weight_decay", "layer_decay", "seed", "save_encoder")
"""Settings of `evaluate` without effect with --fine_tune, and without it."""

_TRAINING = ("lightning", "jsonargparse", "yaml", "torchvision", "matplotlib", "tensorboard", "nvidia.dali")
"""What is needed to train."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's); returns the exit code."""
    spare_home()
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
    whole = parser()
    arguments, rest = whole.parse_known_args(argv)
    if arguments.command in ("pretrain", "study"):
        arguments.settings = rest
    elif rest:
        whole.prog += f" {arguments.command}"
        whole.error(f"unrecognized arguments: {' '.join(rest)}")
    resumes = arguments.command == "pretrain" and arguments.resume is not None
    stopped = _STOPPED.get(f"{arguments.command} --resume" if resumes else arguments.command, "before its end")
    arguments.told = f"amcl-fast {arguments.command}: stopped {stopped}"  # of a Ctrl-C
    output_is_all = arguments.command in ("doctor", "recipes") or (arguments.command == "bench" and arguments.list)
    with Importing(arguments.told, own=argv is None) as importing:
        arguments.begins = importing.begins
        try:
            return _COMMANDS[arguments.command](arguments), output_is_all
        except KeyboardInterrupt:
            print(arguments.told, file=sys.stderr)
            return 128 + signal.SIGINT, output_is_all


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
            with short_warnings(arguments.command):
                return run(arguments)
        except (ValueError, OSError, ImportError) as error:
            return _refuse(arguments.command, error)

    return run_and_tell


def _refuse(command: str, error: Exception) -> int:
    print(f"amcl-fast {command}: error: {error}", file=sys.stderr)
    return 2


def _pretrain(arguments: argparse.Namespace) -> int:
    try:
        require("training", *_TRAINING)
        with doing("loading PyTorch"):
            import torch  # noqa: F401  # half of what follows
        with doing("loading Lightning and DALI"):
            from .pretraining.command import SettingsError, pretrain
    except ImportError as error:
        return _refuse("pretrain", error)
    if any(setting.partition("=")[0].endswith(".help") for setting in arguments.settings):
        from .pretraining.settings_help import help_wanted, settings_help

        try:
            told = settings_help(arguments.recipe, arguments.settings) if help_wanted(arguments.settings) else None
        except (ValueError, OSError) as error:
            return _refuse("pretrain", error)
        if told is not None:
            print(told)
            return 0
    arguments.begins()

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


@_in_one_line
def _recipes(arguments: argparse.Namespace) -> int:
    from .recipes.shown import listed, written

    print(listed() if arguments.name is None else written(arguments.name))
    return 0


@_in_one_line
def _evaluate(arguments: argparse.Namespace) -> int:
    require("evaluation", "lightning", "torchvision", "tqdm", "nvidia.dali")
    from torch import OutOfMemoryError

    from .distributed import ElsewhereError
    from .evaluate.command import run, run_fine_tuning
    from .evaluate.linear import RATES
    from .launch import rank

    useless = _OF_PROBES if arguments.fine_tune else _OF_FINE_TUNING
    for name in useless:
        if (given := getattr(arguments, name)) is not None:
            beside = "with" if arguments.fine_tune else "without"
            raise ValueError(f"--{name} must be left out {beside} --fine_tune, got {given}")
    arguments.begins()
    same = ("data", "held_out", "size", "crop_pct", "batch_size", "output", "trust")
    options = {name: getattr(arguments, name) for name in same}
    options["limits"] = arguments.max_image_bytes, arguments.max_image_pixels
    try:
        if arguments.fine_tune:
            of_training = ("optimizer", "epochs", "weight_decay", "layer_decay", "seed")
            run_fine_tuning(
                arguments.weights,
                **options,
                label_fraction=1.0 if arguments.label_fraction is None else arguments.label_fraction,
                settings={
                    **{name: getattr(arguments, name) for name in of_training},
                    "rates": arguments.rates and tuple(arguments.rates),
                },
                save_encoder=arguments.save_encoder,
            )
            return 0
        run(
            arguments.weights,
            **options,
            k=200 if arguments.k is None else arguments.k,
            epochs=100 if arguments.epochs is None else arguments.epochs,
            rates=arguments.rates or RATES,
            augment=arguments.augment,
            half=bool(arguments.half),
        )
    except ElsewhereError:  # the other process tells of it
        return 2
    except OutOfMemoryError as error:
        said = str(error).partition(". ")[0]
        return _refuse("evaluate", MemoryError(f"{said}; --half, a smaller --batch_size, or more processes take less"))
    except KeyboardInterrupt:
        if not rank():
            raise
        return 128 + signal.SIGINT  # the first process tells of it
    return 0


@_in_one_line
def _export(arguments: argparse.Namespace) -> int:
    if arguments.hub is not None:
        return _export_for_hub(arguments)
    for name in ("push", "private", "license"):
        if getattr(arguments, name):
            raise ValueError(f"--{name} must be left out without --hub NAME, got it")
    output = arguments.output
    format: Literal["safetensors", "onnx"] = arguments.format or (
        "onnx" if output and output.suffix == ".onnx" else "safetensors"
    )
    require("export", "torchvision", *(("safetensors",) if format == "safetensors" else ("onnx", "onnxscript")))
    from .encoder import load_encoder
    from .export import export, loading_code

    arguments.begins()
    path = export(arguments.weights, format=format, output=output, trust=arguments.trust)
    print(path)
    if format == "safetensors":
        print(f"\n{loading_code(load_encoder(path, trust=arguments.trust).config, str(path))}")
    return 0


def _export_for_hub(arguments: argparse.Namespace) -> int:
    if arguments.format not in (None, "safetensors"):
        raise ValueError(f"--format must be safetensors with --hub, got {arguments.format}")
    if arguments.private and not arguments.push:
        raise ValueError("--private must be left out without --push, got it")
    require("export", "torchvision", "safetensors", *(("huggingface_hub",) if arguments.push else ()))
    from .hub import CONFIG, push_to_hub, write_for_hub

    arguments.begins()
    folder = write_for_hub(
        arguments.weights,
        arguments.hub,
        output=arguments.output,
        license=arguments.license,
        trust=arguments.trust,
    )
    print(folder)
    if not (folder / CONFIG).is_file():
        print("timm has no model like this encoder: its card (README.md) says how it is loaded")
    elif not arguments.push:
        print(f'\nimport timm\nmodel = timm.create_model("local-dir:{folder}", pretrained=True)')
    if arguments.push:
        print(push_to_hub(folder, arguments.hub, private=arguments.private))
    return 0


@_in_one_line
def _report(arguments: argparse.Namespace) -> int:
    require("a report", "matplotlib", "yaml")
    from .report import write_comparison, write_report

    arguments.begins()
    if len(arguments.run_dirs) > 1:
        print(write_comparison(arguments.run_dirs, arguments.output))
    elif arguments.output:
        raise ValueError(
            f"--output must be left out for one run, whose report is in its folder, got {arguments.output}"
        )
    else:
        print(write_report(arguments.run_dirs[0]))
    return 0


@_in_one_line
def _study(arguments: argparse.Namespace) -> int:
    require("training", *_TRAINING)
    from .benchmarks.results import machine, versions
    from .pretraining.command import SettingsError
    from .study.given import carry_out
    from .study.training import StopError

    arguments.begins()
    try:
        # Of this process, which uses no GPU; what each training ran on is told with it.
        about = {"machine": machine("cpu"), "environment": versions() | {"date": f"{date.today()}"}}
        carry_out(arguments, about)
    except SettingsError as error:
        return _refuse("study", error)
    except StopError as stop:
        print(f"amcl-fast study: {stop}", file=sys.stderr)
        return stop.code
    return 0


@_in_one_line
def _pack(arguments: argparse.Namespace) -> int:
    from .data.shards.pack import SKIPPED, pack
    from .paths import absolute_data
    from .runs.files import is_full

    arguments.begins()
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
            max_image_bytes=arguments.max_image_bytes,
            max_image_pixels=arguments.max_image_pixels,
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


@_in_one_line
def _bench(arguments: argparse.Namespace) -> int:
    from .benchmarks import command
    from .ops import BACKENDS

    arguments.begins()
    if arguments.backend not in BACKENDS:
        raise ValueError(f"--backend must be one of {', '.join(BACKENDS)}, got {arguments.backend!r}")
    if arguments.list:
        command.list_cases()
        return 0
    if arguments.report:
        command.draw(arguments.output)
        return 0
    if arguments.compare:
        a, b = arguments.compare
        command.compare(a, b, arguments.case, arguments.backend, arguments.seconds, arguments.output)
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


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import main

    return main()


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "pretrain": _pretrain,
    "recipes": _recipes,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
    "study": _study,
    "pack": _pack,
    "bench": _bench,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main())
