"""Training as the command line runs it: what comes before the first step, what ends it, the closing lines."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..extras import extras_named

with extras_named("training"):
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..callbacks import (
    Interrupted,
    NonFiniteError,
    Others,
    RunFolderError,
    SaveError,
    StopSignals,
)
from ..data import ContrastiveDataModule
from ..data.equality import UnequalImagesError, UnevenBatchError
from ..data.scan.headers import NoImageLeftError
from ..distributed import ElsewhereError
from ..fellows import group_error, last_words, met_apart
from ..launch import by_others, check_started, rank, settle_tasks
from ..methods.trainer import out_of_time
from ..progress import doing
from ..recipes import given_recipe, recipe_files, recipe_names
from ..runs.directory import AUTO, RUNS, NewFolder, told_run_dir
from ..runs.files import is_full
from ..runs.lock import RunLock
from ..runs.resuming import (
    FinishedError,
    refuse_another,
    refuse_foreign,
    without_nulled,
)
from ..runs.settings import check_limits
from ..terminal import lasting_output, short_warnings
from .auto import gone_on_from, name_of, note_begun, requeue, with_command, words
from .choosing import choose_recipe
from .config_files import config_files, of_recipe, with_bases, with_home
from .given import NOTHING, Given
from .lightning_cli import PretrainCLI, parsed
from .needs import warn_of_needs
from .results import print_results
from .told import message, quieten, show_traceback

# What settings, data, packages and machines can be blamed for as long as nothing has been trained. Anything else is a
# fault of this package's, and ends with its traceback.
_OF_SETTINGS = (
    ValueError,
    TypeError,
    ArithmeticError,
    ImportError,
    OSError,
    MisconfigurationException,
    UnequalImagesError,
    torch.OutOfMemoryError,
    dist.DistError,
)


class SettingsError(ValueError):
    """The settings, the data or the checkpoint are not such that a run can start."""


class RunError(RuntimeError):
    """A run has ended before its end, for a reason that its message tells in one line; "" if another process tells it.

    Attributes:
        code: of the command.
    """

    def __init__(self, told: str, code: int) -> None:
        super().__init__(told)
        self.code = code


def pretrain(
    *,
    recipe: str | None,
    data: str | None,
    resume: str | None,
    run_dir: Path | None,
    settings: Sequence[str],
    trust: bool = False,
    begun: Callable[[Path], None] = lambda run_dir: None,
) -> int:
    """Train, print where the results are, return the exit code.

    Args:
        recipe: name of a recipe; may be None if `settings` bring a --config, or with `resume`.
        data: overrides data.root.
        resume: run directory or checkpoint to go on from, or `LATEST`; `AUTO`: go on in `run_dir`, or begin there.
        run_dir: folder of a new run.
        settings: further command-line settings; they override the recipe's, or the resumed run's.
        trust: import what a resumed run names from outside `settings.TRUSTED`.
        begun: called with the run directory once the run is ready to train.

    Raises:
        SettingsError: the run cannot start; the message says why.
    """
    quieten()
    with lasting_output():
        try:
            run(recipe, data, resume, run_dir, settings, trust=trust, begun=begun)
        except FinishedError as finished:
            if not rank():
                print(finished, flush=True)
        except Interrupted as interrupted:
            return 128 + interrupted.signum
        except RunError as error:
            if str(error):
                print(f"amcl-fast pretrain: error: {error}", file=sys.stderr)
            return error.code
    return 0


def run(
    recipe: str | None,
    data: str | None,
    resume: str | None,
    run_dir: Path | None,
    settings: Sequence[str],
    *,
    trust: bool = False,
    begun: Callable[[Path], None] = lambda run_dir: None,
    given: Given = NOTHING,
    signals: StopSignals | None = None,
) -> PretrainCLI:
    """The course of a run, from its settings to the closing lines; returns what was trained.

    Args:
        recipe, data, resume, run_dir, settings, trust, begun: as `pretrain` takes them.
        given: what comes as objects and not as settings.
        signals: what takes them; None: as a command does.

    Raises:
        SettingsError: the run cannot start.
        RunError: it has ended before its end.
        FinishedError: `resume` is `AUTO`, and the run has nothing left to train.
        Interrupted: a signal has stopped it, which it has told; what was trained is saved.
    """
    with short_warnings("pretrain"), met_apart(), signals or StopSignals() as signals, RunLock() as lock:
        signals.at_once = True
        failed: RunError | None = None
        code = 0
        try:
            try:
                cli = _prepare(recipe, data, resume, run_dir, settings, trust, lock, signals, given)
            except _OF_SETTINGS as error:
                show_traceback(error)
                raise SettingsError(message(error)) from error
            except ElsewhereError as error:  # the first process says what it is
                raise RunError("", 2) from error
            begun(cli.run_dir)
            try:
                code = _train(cli, signals, requeues=resume == AUTO)
            except RunError as error:
                failed = error
            finally:
                if cli.rehearses:
                    cli.discard()
        except Interrupted as interrupted:
            if not rank():
                went = {None: "nothing was saved; begin again", AUTO: "go on"}
                done = f"{went.get(resume, 'the run is as it was; go on')} with the same command"
                if resume is None and lock.run_dir is not None:  # which torchrun has started again
                    done = f"the run is as it was; go on with: {given.go_on(lock.run_dir)}"
                print(f"stopped before the first step: {done}", flush=True)
            code = 128 + interrupted.signum
        if resume == AUTO and code == 128 + signal.SIGUSR1:
            requeue()
            if dist.is_available() and dist.is_initialized():
                dist.barrier()  # srun may end all with the first that ends
        if dist.is_available() and dist.is_initialized():
            # Lightning does this for NCCL only; see distributed.py for what gloo's threads may do to the exit.
            dist.destroy_process_group()
        if failed is not None:
            raise failed
        if code:
            raise Interrupted(code - 128)
    return cli


def _train(cli: PretrainCLI, signals: StopSignals, *, requeues: bool) -> int:
    """Train; returns 128 + the signal that has stopped it, or 0."""
    resumed = cli.resumed
    if not rank():
        if cli.rehearses:
            print("trying it out (trainer.fast_dev_run): nothing is kept", flush=True)
        else:
            print(f"run directory: {cli.run_dir}", flush=True)
        if resumed is not None and resumed.command and cli.lengths:  # another may have set them since
            print(f"this command changes {cli.lengths}", flush=True)
        if not cli.checkpoint.enabled and not cli.rehearses:
            print("no checkpoint is saved (trainer.enable_checkpointing): the run cannot go on", flush=True)
    go_on = cli.given.go_on(cli.run_dir)

    def tell_stopped() -> None:
        if not rank() and resumed is not None and not cli.opening.opened:
            print("stopped before the first step: the run is as it was; go on with the same command", flush=True)
        elif not rank() and not cli.checkpoint.enabled:
            print(f"stopped at step {cli.trainer.global_step}: no checkpoint is saved", flush=True)
        elif not rank():
            saved = cli.checkpoint.path is not None and cli.checkpoint.path.is_file()
            where = f"at step {cli.trainer.global_step}" if saved else "before anything was saved"
            beside_the_bar = "\n" if cli.trainer.progress_bar_callback is not None else ""
            print(f"{beside_the_bar}stopped {where}; go on with: {go_on}", flush=True)

    def end_unjoined(signum: int) -> None:
        launcher: Any = cli.trainer.strategy.launcher
        if hasattr(launcher, "kill"):
            launcher.kill(signum)
        tell_stopped()
        if requeues and signum == signal.SIGUSR1:
            requeue()

    try:
        path = resumed.checkpoint if resumed else None
        cli.callback(Others).watch(cli.trainer)
        with signals.heard_while_waiting(end_unjoined), last_words():
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
    except Interrupted as interrupted:
        tell_stopped()
        return 128 + interrupted.signum
    except ElsewhereError:  # the other process says what it is
        if not cli.opening.opened:
            cli.discard()
        raise RunError("", 1) from None
    except (NonFiniteError, SaveError, RunFolderError, NoImageLeftError) as error:
        raise RunError(str(error), 1) from error
    except Exception as error:
        if signals.at_once:  # until the first step
            with suppress(Interrupted):  # told below
                error = group_error(error, rank()) or error
            if signals.received:  # and the processes that it has ended have left each other in a collective
                tell_stopped()
                return 128 + signals.received
        if not cli.opening.opened:
            cli.discard()
            if resumed is None and not isinstance(error, _OF_SETTINGS):
                raise
            show_traceback(error)
            said = message(error)
            if resumed is not None:
                path = resumed.checkpoint or cli.run_dir
                said = f"{path} cannot be resumed: {said}. Nothing in {cli.run_dir} was changed"
            # What all processes have found one of them says.
            by_another = rank() and isinstance(error, UnequalImagesError | UnevenBatchError)
            raise RunError("" if by_another else said, 2) from error
        lost = group_error(error, rank())
        if lost is not None:
            raise RunError(f"{lost}; go on with: {go_on}", 1) from error
        if isinstance(error, torch.OutOfMemoryError):
            show_traceback(error)
            where = f"process {rank()}, step {cli.trainer.global_step}"
            raise RunError(f"{where}: {message(error)}; where there is more memory go on with: {go_on}", 1) from error
        if not isinstance(error, OSError) or not _is_of(error, cli.run_dir):
            raise
        mended = "once there is room" if is_full(error) else "once that is mended"
        raise RunError(f"{error}; {mended}: {go_on}", 1) from error
    if cli.trainer.is_global_zero:
        if out_of_time(cli.trainer):
            steps = cli.trainer.estimated_stepping_batches
            of = f" of {steps}" if steps < float("inf") else ""
            more = cli.given.go_on(cli.run_dir, without_limit=True)
            print(f"stopped by trainer.max_time at step {cli.trainer.global_step}{of}; go on with: {more}", flush=True)
        elif resumed is not None and resumed.checkpoint is not None and cli.trainer.global_step == resumed.step:
            ends = f"trainer.max_epochs is {cli.trainer.max_epochs}, trainer.max_steps {cli.trainer.max_steps}"
            print(f"nothing is left to train at step {resumed.step}: {ends}; the first that is reached is the end")
        print_results(cli)
    return 0


def _prepare(
    recipe: str | None,
    data: str | None,
    resume: str | None,
    run_dir: Path | None,
    settings: Sequence[str],
    trust: bool,
    lock: RunLock,
    signals: StopSignals,
    given: Given,
) -> PretrainCLI:
    """Everything before the first step, so that what the user can mend fails here: the run, its checkpoint."""
    args: list[str] = []
    folder = None
    recipe = given_recipe(recipe) if recipe else None
    settle_tasks()
    settings = with_home(settings)
    named = [name for _, _, name in config_files(settings)]
    for name in named:
        if os.path.exists(name):  # it may also be settings, as text
            check_limits(Path(name))
    settings = with_bases(settings)
    command = name_of((recipe, data, resume, run_dir, *settings))
    resume, run_dir, resumed = gone_on_from(command, resume, run_dir, recipe, lock, signals, given)
    if resume in (None, AUTO):
        chosen: list[str] = []
        options = {setting.partition("=")[0] for setting in settings}
        helped = any(option.endswith(".help") for option in options)  # by the parser, on a class of others
        described = helped or given.method is not None or {"--model", "--help", "-h", "--print_config"} & options
        if not recipe and not named and not described:
            recipe = None if resumed is None else resumed.settings.get("recipe")
            if recipe is None:
                recipe, chosen = choose_recipe(data, settings)
            elif recipe not in recipe_names():
                raise ValueError(f"--recipe must be the file of settings with which {run_dir} was begun, got none")
        args = [*of_recipe(recipe, recipe_files(recipe) if recipe else []), *chosen]
    settings = [*(["--data.root", data] if data is not None else []), *settings]
    if resumed is None:
        name = recipe or "run"
        if rank():
            run_dir = told_run_dir(run_dir)
        else:
            folder = NewFolder(run_dir, name, lock)
            run_dir = run_dir or RUNS / name
    elif resumed.settings:
        assert run_dir is not None
        if resume == AUTO:
            # What only the recipe says is as the run has it, which may have been made longer since.
            refuse_another(recipe, resumed, run_dir)
            resumed = with_command(resumed, [*args, *settings], settings)
            args = of_recipe(recipe, [])
        if not trust:
            resumed = replace(resumed, settings=without_nulled(resumed.settings, settings))
            refuse_foreign(resumed.settings, run_dir, words(settings) if resume == AUTO else ())
    assert run_dir is not None
    try:
        with doing("reading the settings, building the model"):
            cli = PretrainCLI([*args, *settings], run_dir, resumed, signals, folder, given)
        check_started(cli.trainer)
        # Before images are looked for, or drawn.
        cli.model.check_batch(cli.datamodule.batch_size, cli.datamodule.target_views)
        if len({*cli.datamodule.view_sizes}) > 1:
            cli.model.check_sizes(cli.datamodule.view_sizes)
        # Others that wait to meet this process give up after half an hour: then it looks for images when they have met.
        if not rank() and not by_others():
            cli.datamodule.prepare_data()
            cli.datamodule.setup("fit")
            if isinstance(cli.datamodule, ContrastiveDataModule):
                if (images := cli.datamodule.num_train) < (batch := cli.datamodule.batch_size):
                    raise ValueError(f"data.batch_size must be at most {images}, the training images, got {batch}")
                if resumed is None:
                    warn_of_needs(cli.trainer, cli.model, cli.datamodule)
        if not rank() and not cli.rehearses:
            note_begun(command, cli.run_dir)
        cli.checkpoint.lock = None if rank() else lock
        cli.open_run()
    except BaseException:  # a signal too
        if folder is not None:
            folder.give_up()
        raise
    return cli


def settings_of(recipe: str, settings: Sequence[str]) -> dict[str, Any]:
    """All settings of a run that `pretrain` would begin, as its config.yaml would have them.

    Args:
        recipe, settings: as `pretrain` takes them; --data is --data.root here.

    Raises:
        SettingsError: one is unknown, out of range or of no effect. What shows when a model is built, or in the data,
            is not found here.
    """
    try:
        return parsed([*of_recipe(recipe, recipe_files(recipe)), *with_bases(with_home(settings))])
    except _OF_SETTINGS as error:
        raise SettingsError(message(error)) from error


def _is_of(error: OSError, run_dir: Path) -> bool:
    """Whether an error is of a disk, or of a file in the run directory: nothing that a traceback would explain."""
    files = [name for name in (error.filename, error.filename2) if isinstance(name, str | Path)]
    return is_full(error) or any(Path(name).absolute().is_relative_to(run_dir.absolute()) for name in files)
