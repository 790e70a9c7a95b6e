"""Training as the command line runs it: settings, run directory, callbacks, loggers, the closing lines."""

import itertools
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .extras import extras_named

with extras_named("training"):
    import yaml
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.plugins.environments import SLURMEnvironment
    from lightning.pytorch.trainer import Trainer
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

from .callbacks import (
    Checkpoint,
    End,
    EpochSummary,
    EventsFile,
    ExactResume,
    Guard,
    Interrupted,
    MetricsFile,
    NonFiniteError,
    OnlineKNN,
    OpenRun,
    ProgressBar,
    Report,
    RunFolderError,
    SaveError,
    SaveOnSignal,
    SkippedFiles,
    StopSignals,
    Throughput,
)
from .data import ContrastiveDataModule
from .data.headers import NoImageLeftError
from .data.module import UnequalImagesError, UnevenBatchError
from .distributed import ElsewhereError
from .launch import group_error
from .methods import Method
from .methods.trainer import out_of_time
from .models.backbones import TIMM_PREFIX
from .parser import Parser
from .paths import absolute_data, expanded, find_data
from .recipes import recipe_files, recipe_names
from .runs.checkpoint import load_checkpoint
from .runs.directory import RUNS, NewFolder, RunDirectory, aside, told_run_dir
from .runs.files import Unwritten, copy_file, is_full, write_file
from .runs.lock import RunLock
from .runs.resuming import Resumed, find_run, read_resumed, refuse_foreign, without_nulled
from .runs.settings import (
    check_limits,
    refused_changes,
)
from .terminal import lasting_output
from .trainer_settings import check_trainer, let_speak, refuse_useless

TRACEBACK = "AMCL_FAST_TRACEBACK"
"""Variable of the environment that, set to anything, has the traceback of what is told in one line printed as well."""

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


class SettingsError(Exception):
    """The settings, the data or the checkpoint are not such that a run can start."""


class _Trainer(Trainer):
    """Takes 1 batch for one batch: Python remembers Union[int, float] as the Union[float, int] that it met first."""

    def __init__(
        self,
        *args: Any,
        limit_train_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, limit_train_batches=limit_train_batches, overfit_batches=overfit_batches, **kwargs)


class PretrainCLI(LightningCLI):
    """LightningCLI with the settings of this package's callbacks, all output in one run directory.

    Args:
        args: settings as command-line arguments; of a resumed run, those that change.
        run_dir: where everything of the run goes.
        resumed: what the run goes on from, None for a new run.
        signals: whose handlers are set; None: they are set while training lasts.
        folder: of a new run; it is made once the settings are known to be good, and replaces `run_dir`.

    Raises:
        ValueError: a setting of a resumed run is changed that must stay, or one is out of range or of no effect here.
        FileNotFoundError: the data of a resumed run, a relative path, is not to be found.
        OSError: `folder` cannot be had.
    """

    def __init__(
        self,
        args: list[str],
        run_dir: Path,
        resumed: Resumed | None = None,
        signals: StopSignals | None = None,
        folder: NewFolder | None = None,
    ) -> None:
        self.run_dir = run_dir
        self._folder = folder
        self.resumed = resumed
        self.signals = signals
        self._unwritten = Unwritten()
        self.opening = OpenRun(self._open_resumed, self._unwritten.retry)
        super().__init__(
            Method,
            ContrastiveDataModule,
            subclass_mode_model=True,
            save_config_callback=None,
            trainer_class=_Trainer,
            parser_class=Parser,
            trainer_defaults={"enable_model_summary": False, "num_sanity_val_steps": 0},
            args=args,
            run=False,
            auto_configure_optimizers=False,
            parser_kwargs={"allow_abbrev": False},
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="seed of weights and data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--base", type=str | list[str] | None, help="parts on which a recipe builds")
        parser.add_argument("--recipe", type=str | None, help="name of the recipe of a run, kept with its results")
        parser.add_lightning_class_args(OnlineKNN, "knn")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(Guard, "guard")
        parser.add_lightning_class_args(Report, "report")
        parser.link_arguments("seed_everything", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # The parent warns of `args` beside sys.argv; here they are what remains of it.
        if self.resumed is None:
            self.config = parser.parse_args(args)
            refuse_useless(self.config.trainer, self._known_dir)
            self._settle(absolute_data, absolute_data)
            self._set_backbone_size()
            return
        self.config = parser.parse_args([*self.resumed.argument, *args])
        before = parser.parse_args(self.resumed.argument)
        refuse_useless(self.config.trainer, self._known_dir, before.trainer)
        changed = refused_changes(*(self._plain(config, parser) for config in (before, self.config)))
        if changed:
            first = "; ".join(f"{name} from {change}" for name, change in list(changed.items())[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ValueError(
                f"a resumed run goes on with its own settings, got {first}{more}; what may change is the length of "
                "the training, devices of the same number, logging, data.root, where data.held_out lies, threads, "
                f"and knn, checkpoint, guard and report. Nothing in {self.run_dir} was changed"
            )

        def placed(name: str) -> Callable[[str], str]:
            kept = self.config.data[name] == before.data[name]
            return lambda path: find_data(path, self.run_dir) if kept else absolute_data(path)

        self._settle(placed("root"), placed("held_out"))
        self._set_backbone_size()

    def _settle(self, root: Callable[[str], str], held_out: Callable[[str], str]) -> None:
        """Refuse what cannot be, and keep paths such that the run can go on from anywhere."""
        check_trainer(self.config.trainer)
        let_speak(self.config.trainer)
        data = self.config.data
        data.root, data.held_out = root(data.root), held_out(data.held_out) if data.held_out else None

    @property
    def _files(self) -> RunDirectory:
        return RunDirectory(self.run_dir)

    @property
    def _known_dir(self) -> Path | None:
        """The run directory, None where the name of a new one is still to be found."""
        return self.run_dir if self._folder is None else self._folder.given

    def before_instantiate_classes(self) -> None:
        if self._folder is not None:
            self.run_dir = self._folder.reserve()

    def _set_backbone_size(self) -> None:
        """Build a model of timm for images of data.size, other encoders for any; a resumed run keeps timm's as it was.

        Raises:
            ValueError: the settings say another one.
        """
        backbone, size = self.config.get("model.init_args.backbone"), self.config.data.size
        if backbone is None:
            return
        if self.resumed is None and backbone.get("size") not in (None, size):
            raise ValueError(f"model.backbone.size must be data.size, {size}, or unset, got {backbone.size}")
        if not str(backbone.get("name")).startswith(TIMM_PREFIX):
            backbone.size = None  # older runs have one, without effect
        elif self.resumed is None:
            backbone.size = size

    @staticmethod
    def _plain(config: Any, parser: LightningArgumentParser) -> dict[str, Any]:
        settings = yaml.safe_load(parser.dump(config, skip_unset=False, format="yaml"))
        return {name: value for name, value in settings.items() if name != "config"}

    def open_run(self) -> None:
        """Write the settings into the directory of a new run.

        Raises:
            OSError: they cannot be written.
        """
        if not _rank() and self.resumed is None:
            write_file(self._files.config, self._yaml)

    def discard(self) -> None:
        """Remove the directory of a new run in which nothing was begun."""
        if self._folder is not None:
            self._files.config.unlink(missing_ok=True)
            self._folder.give_up()

    def _open_resumed(self) -> None:
        """What changes in the directory of a run once its resume has succeeded."""
        if self.resumed is None:
            return
        self._put_aside_what_is_later()
        self._files.clear()
        path = self._files.config
        self._unwritten.write(str(path), lambda: write_file(path, self._yaml))
        for logger in self.trainer.loggers:
            if isinstance(logger, MetricsFile | EventsFile):
                logger.write()

    def _put_aside_what_is_later(self) -> None:
        """Keep the end of a run that goes on from an earlier checkpoint than its last."""
        last = self._files.last
        assert self.resumed is not None
        if self.resumed.checkpoint is None or not last.is_file() or last.samefile(self.resumed.checkpoint):
            return
        step = load_checkpoint(last)["global_step"]
        if step <= self.resumed.step:
            return
        for path in (last, self._files.metrics):
            kept = aside(path, step)
            if path.is_file() and not kept.exists():
                copy_file(path, kept)
                print(f"{path} is of step {step}, which is later: it is kept as {kept}", flush=True)

    @property
    def _yaml(self) -> str:
        return self.parser.dump(self.config, skip_unset=False, format="yaml")

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        # Plain types: the checkpoint loads with weights_only, and `Method.load_from_checkpoint` rebuilds.
        settings = yaml.safe_load(self._yaml)
        model = settings["model"]
        self.model.save_hyperparameters(
            {
                "_instantiator": "lightning.pytorch.cli.instantiate_module",
                "_class_path": model["class_path"],
                **model["init_args"],
            },
            logger=False,
        )
        self.checkpoint.settings = settings

    @property
    def checkpoint(self) -> Checkpoint:
        """The callback that saves."""
        return _find(self.trainer, Checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        step = None if self.resumed is None else self.resumed.step
        given = self._get(self.config_init, "trainer")
        theirs = given["logger"] if isinstance(given["logger"], list) else [given["logger"]]
        loggers: list[Logger] = [MetricsFile(self.run_dir, step), EventsFile(self.run_dir, step)]
        loggers += [logger for logger in theirs if isinstance(logger, Logger)]
        bar = given["enable_progress_bar"]
        try:
            return super().instantiate_trainer(
                logger=loggers,
                default_root_dir=self.run_dir,
                enable_progress_bar=sys.stdout.isatty() if bar is None else bar,
                # There is no validation; Lightning compares them with the length of an epoch all the same.
                val_check_interval=None,
                check_val_every_n_epoch=1,
                **kwargs,
            )
        except ImportError as error:
            precision = self.config["trainer"]["precision"]
            if not str(precision).startswith("transformer-engine"):
                raise
            raise ImportError(
                "trainer.precision must be 32-true, 64-true, bf16-true, 16-true, bf16-mixed or 16-mixed where "
                f"transformer_engine is not installed, got {precision}"
            ) from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        checkpoint = next(callback for callback in callbacks if isinstance(callback, Checkpoint))
        on_signal = SaveOnSignal(checkpoint, self.signals)
        next(callback for callback in callbacks if isinstance(callback, OnlineKNN)).between_batches = on_signal.poll
        given = config["callbacks"] or []
        # What may fail comes before whatever writes, the user's callbacks included; the list of bad files before kNN,
        # which may find the first of them.
        begin = [ExactResume(), self.opening, SkippedFiles()]
        config["callbacks"] = [*begin, *(given if isinstance(given, list) else [given])]
        end = End()
        progress = [end, ProgressBar(end)] if config["enable_progress_bar"] else [EpochSummary()]
        extra = [Throughput(), on_signal, *progress]
        return super()._instantiate_trainer(config, [*callbacks, *extra])


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
        resume: run directory or checkpoint to go on from, or `LATEST`.
        run_dir: folder of a new run.
        settings: further command-line settings; they override the recipe's, or the resumed run's.
        trust: import what a resumed run names from outside `settings.TRUSTED`.
        begun: called with the run directory once the run is ready to train.

    Raises:
        SettingsError: the run cannot start; the message says why.
    """
    _quieten()
    with lasting_output(), _short_warnings(), StopSignals() as signals, RunLock() as lock:
        signals.at_once = True
        try:
            try:
                cli = _prepare(recipe, data, resume, run_dir, settings, trust, lock, signals)
            except _OF_SETTINGS as error:
                _show_traceback(error)
                raise SettingsError(_message(error)) from error
            begun(cli.run_dir)
            code = _train(cli, signals)
        except Interrupted as interrupted:
            if not _rank():
                done = "nothing was saved; begin again" if resume is None else "the run is as it was; go on"
                print(f"stopped before the first step: {done} with the same command", flush=True)
            return 128 + interrupted.signum
        if dist.is_available() and dist.is_initialized():
            # Lightning does this for NCCL only; see distributed.py for what gloo's threads may do to the exit.
            dist.destroy_process_group()
    return code


def _train(cli: PretrainCLI, signals: StopSignals) -> int:
    resumed = cli.resumed
    if not _rank():
        print(f"run directory: {cli.run_dir}", flush=True)
    go_on = f"amcl-fast pretrain --resume {shlex.quote(str(cli.run_dir))}"

    def tell_stopped() -> None:
        if not _rank() and resumed is not None and not cli.opening.opened:
            print("stopped before the first step: the run is as it was; go on with the same command", flush=True)
        elif not _rank():
            saved = cli.checkpoint.path is not None and cli.checkpoint.path.is_file()
            where = f"at step {cli.trainer.global_step}" if saved else "before anything was saved"
            beside_the_bar = "\n" if cli.trainer.progress_bar_callback is not None else ""
            print(f"{beside_the_bar}stopped {where}; go on with: {go_on}", flush=True)

    def end_unjoined(signum: int) -> None:
        launcher: Any = cli.trainer.strategy.launcher
        if hasattr(launcher, "kill"):
            launcher.kill(signum)
        tell_stopped()

    try:
        path = resumed.checkpoint if resumed else None
        with signals.heard_while_waiting(end_unjoined):
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
    except Interrupted as interrupted:
        tell_stopped()
        return 128 + interrupted.signum
    except ElsewhereError:  # the other process says what it is
        if not cli.opening.opened:
            cli.discard()
        return 1
    except (NonFiniteError, SaveError, RunFolderError, NoImageLeftError) as error:
        print(f"amcl-fast pretrain: error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if signals.at_once:  # until the first step
            with suppress(Interrupted):  # told below
                error = group_error(error, _rank()) or error
            if signals.received:  # and the processes that it has ended have left each other in a collective
                tell_stopped()
                return 128 + signals.received
        if not cli.opening.opened:
            cli.discard()
            if resumed is None and not isinstance(error, _OF_SETTINGS):
                raise
            _show_traceback(error)
            said = _message(error)
            if resumed is not None:
                path = resumed.checkpoint or cli.run_dir
                said = f"{path} cannot be resumed: {said}. Nothing in {cli.run_dir} was changed"
            # What all processes have found one of them says.
            if not (_rank() and isinstance(error, UnequalImagesError | UnevenBatchError)):
                print(f"amcl-fast pretrain: error: {said}", file=sys.stderr)
            return 2
        if not isinstance(error, OSError) or not _is_of(error, cli.run_dir):
            raise
        mended = "once there is room" if is_full(error) else "once that is mended"
        print(f"amcl-fast pretrain: error: {error}; {mended}: {go_on}", file=sys.stderr)
        return 1
    if cli.trainer.is_global_zero:
        if out_of_time(cli.trainer):
            steps = cli.trainer.estimated_stepping_batches
            of = f" of {steps}" if steps < float("inf") else ""
            more = f"{go_on} --trainer.max_time null"
            print(f"stopped by trainer.max_time at step {cli.trainer.global_step}{of}; go on with: {more}", flush=True)
        _print_results(cli)
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
) -> PretrainCLI:
    """Everything before the first step, so that what the user can mend fails here: the run, its checkpoint."""
    args: list[str] = []
    resumed = folder = None
    settings = _with_home(settings)
    named = [name for _, _, name in _configs(settings)]
    for name in named:
        if os.path.exists(name):  # it may also be settings, as text
            check_limits(Path(name))
    if resume is not None:
        resume = expanded(resume)
        if run_dir is not None:
            raise ValueError("--run_dir names a new run; a resumed run stays in its folder")
        run_dir, checkpoint = find_run(resume, recipe)
        if not _rank():
            _check_writable(run_dir, RunDirectory(run_dir).checkpoints)
            lock.acquire(run_dir)
        resumed = read_resumed(run_dir, checkpoint)
        if not trust:
            resumed = Resumed(resumed.checkpoint, resumed.step, without_nulled(resumed.settings, settings))
            refuse_foreign(resumed.settings, run_dir)
    else:
        configs = recipe_files(recipe) if recipe else []
        options = {setting.partition("=")[0] for setting in settings}
        if not configs and not named and not {"--help", "-h", "--print_config"} & options:
            raise ValueError(f"--recipe is missing; recipes: {', '.join(recipe_names())}")
        name = recipe or "run"
        if _rank():
            run_dir = told_run_dir(run_dir)
        else:
            if run_dir is None and _started_by_others():
                raise ValueError("under torchrun or srun every process must know the folder of the run: give --run_dir")
            folder = NewFolder(run_dir, name, lock)
            run_dir = run_dir or RUNS / name
        args = [argument for config in configs for argument in ("--config", str(config))]
        args += ["--recipe", recipe] if recipe else []
    args += ["--data.root", data] if data is not None else []
    try:
        cli = PretrainCLI([*args, *settings], run_dir, resumed, signals, folder)
        # Others that wait to meet this process give up after half an hour: then it looks for images when they have met.
        if not _rank() and not _started_by_others() and cli.trainer.num_nodes == 1:
            cli.datamodule.prepare_data()
            cli.datamodule.setup("fit")
        cli.model.check_batch(cli.datamodule.batch_size)
        cli.open_run()
    except BaseException:  # a signal too
        if folder is not None:
            folder.give_up()
        raise
    return cli


def _check_writable(*folders: Path) -> None:
    for folder in folders:
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be written: nothing of the run could be saved there")


def _configs(settings: Sequence[str]) -> list[tuple[int, str, str]]:
    """Files of settings that the command line names, in every form: where, what stands before the name, the name."""
    found = []
    for place, (before, setting) in enumerate(itertools.pairwise(["", *settings])):
        option, equals, value = setting.partition("=")
        if before in ("--config", "-c"):
            found.append((place, "", setting))
        elif equals and option in ("--config", "-c"):
            found.append((place, f"{option}=", value))
        elif setting.startswith("-c") and setting != "-c":
            found.append((place, "-c", setting[2:]))
    return found


def _is_of(error: OSError, run_dir: Path) -> bool:
    """Whether an error is of a disk, or of a file in the run directory: nothing that a traceback would explain."""
    files = [name for name in (error.filename, error.filename2) if isinstance(name, str | Path)]
    return is_full(error) or any(Path(name).absolute().is_relative_to(run_dir.absolute()) for name in files)


def _message(error: BaseException) -> str:
    """What an error says, in one line; of those of Python's own that say little without it, with their kind."""
    # jsonargparse wraps what a constructor says into a list of every type it has tried.
    while "Given value type:" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if isinstance(error, TypeError | ArithmeticError) else said


def _show_traceback(error: BaseException) -> None:
    """Print where an error comes from, if the environment asks for it, before it is told in one line."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)


def _rank() -> int:
    """Of this process, which the launcher tells before anything is set up."""
    return rank_zero_only.rank or 0  # type: ignore[attr-defined]


def _quieten() -> None:
    """Leave the screen to the run: no announcements of Lightning's, none of deprecations inside it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=r".*callbacks: \['Timer'\]")  # of a max_time that a resume takes away


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Within the block a warning is one line without the code that it came from."""
    usual = warnings.formatwarning

    def short(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        if category is UserWarning:
            return f"amcl-fast pretrain: warning: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = short
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _started_by_others() -> bool:
    """Whether a launcher has started several processes, which cannot tell each other a name before they train."""
    slurm = SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1
    return "TORCHELASTIC_RUN_ID" in os.environ or slurm


def _with_home(settings: Sequence[str]) -> list[str]:
    """Settings whose files of settings are named without a ~, which the shell leaves in --config=~/FILE."""
    found = list(settings)
    for place, before, name in _configs(settings):
        found[place] = f"{before}{expanded(name)}"
    return found


def _find(trainer: Trainer, kind: type) -> Any:
    """The trainer's callback of a kind of this package."""
    return next(callback for callback in trainer.callbacks if type(callback) is kind)  # type: ignore[attr-defined]


def _print_results(cli: PretrainCLI) -> None:
    knn = _find(cli.trainer, OnlineKNN)
    rows = [("raw pixels", knn.pixels), ("untrained encoder", knn.untrained)]
    whole = cli.trainer.current_epoch
    rows += [(f"{'after' if epoch <= whole else 'in'} epoch {epoch}", value) for epoch, value in knn.history[-1:]]
    measured = [(name, accuracy) for name, accuracy in rows if accuracy is not None]
    if measured:
        # Of a checkpoint of an earlier version only the setting is known.
        print(f"kNN accuracy (k = {knn.neighbours or knn.k})")
    for name, accuracy in measured:
        print(f"  {name:<18} {accuracy:5.1f} %")
    files = {"checkpoint": cli.checkpoint.path, "report": _find(cli.trainer, Report).path}
    for name, path in files.items():
        if path is not None and path.is_file():
            print(f"{name:<10}  {path}")
