"""Training as the command line runs it: settings, run directory, callbacks, loggers, the closing lines."""

import errno
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from .callbacks import (
    Checkpoint,
    EpochSummary,
    ExactResume,
    Guard,
    Interrupted,
    MetricsFile,
    NonFiniteError,
    OnlineKNN,
    Report,
    SaveError,
    SaveOnSignal,
    SkippedFiles,
    Throughput,
)
from .checkpoint import load_checkpoint
from .cli import LATEST
from .data import ContrastiveDataModule
from .data.headers import NoImageLeftError
from .lock import RunLock
from .methods import Method
from .recipes import recipe_files, recipe_names

RUNS = Path("runs")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
# Lightning's launcher starts the other processes with the same command line; they inherit the folder.
_RUN_DIR_VARIABLE = "AMCL_FAST_RUN_DIR"


class SettingsError(Exception):
    """The settings, the data or the checkpoint are not such that a run can start."""


class PretrainCLI(LightningCLI):
    """LightningCLI with the settings of this package's callbacks, all output in one run directory.

    Args:
        args: settings as command-line arguments.
        run_dir: where everything of the run goes.
        resume_step: optimiser step of the checkpoint from which the run goes on, None for a new run.
    """

    def __init__(self, args: list[str], run_dir: Path, resume_step: int | None) -> None:
        self.run_dir = run_dir
        self.resume_step = resume_step
        super().__init__(
            Method,
            ContrastiveDataModule,
            subclass_mode_model=True,
            save_config_callback=None,
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
        self.config = parser.parse_args(args)

    def open_run(self, lock: RunLock) -> None:
        """Make the run directory, lock it and write the settings into it.

        Raises:
            FileExistsError: another run has it.
        """
        if _rank():
            return
        if self.resume_step is None:
            try:
                self.run_dir.mkdir(parents=True)
            except FileExistsError:
                raise FileExistsError(
                    f"{self.run_dir} exists, and two runs never share a folder; give another --run_dir, or "
                    f"go on with that run: --resume {self.run_dir}"
                ) from None
            lock.acquire(self.run_dir)
        partial = self.run_dir / "config.partial"
        self.parser.save(self.config, partial, skip_unset=False, overwrite=True, format="yaml")
        os.replace(partial, self.run_dir / "config.yaml")

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        # Plain types: the checkpoint loads with weights_only, and `Method.load_from_checkpoint` rebuilds.
        model = yaml.safe_load(self.parser.dump(self.config, skip_unset=False, format="yaml"))["model"]
        self.model.save_hyperparameters(
            {
                "_instantiator": "lightning.pytorch.cli.instantiate_module",
                "_class_path": model["class_path"],
                **model["init_args"],
            },
            logger=False,
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        loggers = [
            MetricsFile(self.run_dir, self.resume_step),
            TensorBoardLogger(self.run_dir, name="tensorboard", version="", purge_step=self.resume_step),
        ]
        return super().instantiate_trainer(
            logger=loggers, default_root_dir=self.run_dir, enable_progress_bar=sys.stdout.isatty(), **kwargs
        )

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        checkpoint = next(callback for callback in callbacks if isinstance(callback, Checkpoint))
        extra = [ExactResume(), SkippedFiles(), Throughput(), SaveOnSignal(checkpoint)]
        extra.append(TQDMProgressBar() if config["enable_progress_bar"] else EpochSummary())
        return super()._instantiate_trainer(config, [*callbacks, *extra])


def pretrain(
    *, recipe: str | None, data: str | None, resume: str | None, run_dir: Path | None, settings: Sequence[str]
) -> int:
    """Train, print where the results are, return the exit code.

    Args:
        recipe: name of a recipe; may be None if `settings` bring a --config, or with `resume`.
        data: overrides data.root.
        resume: run directory or checkpoint to go on from, or `LATEST`.
        run_dir: folder of a new run.
        settings: further command-line settings; they override the recipe's, or the resumed run's.

    Raises:
        SettingsError: the run cannot start; the message says why.
    """
    _quieten()
    with RunLock() as lock:
        try:
            cli, checkpoint = _prepare(recipe, data, resume, run_dir, settings, lock)
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise SettingsError(_message(error)) from error
        code = _train(cli, checkpoint)
    if dist.is_available() and dist.is_initialized():
        # Lightning does this for NCCL only; see distributed.py for what gloo's threads may do to the exit.
        dist.destroy_process_group()
    return code


def _train(cli: PretrainCLI, checkpoint: Path | None) -> int:
    print(f"run directory: {cli.run_dir}", flush=True)
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except Interrupted as interrupted:
        if cli.trainer.is_global_zero:
            command = f"amcl-fast pretrain --resume {shlex.quote(str(cli.run_dir))}"
            print(f"stopped at step {cli.trainer.global_step}; go on with: {command}", flush=True)
        return 128 + interrupted.signum
    except (NonFiniteError, SaveError, NoImageLeftError) as error:
        print(f"amcl-fast pretrain: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        command = f"amcl-fast pretrain --resume {shlex.quote(str(cli.run_dir))}"
        print(f"amcl-fast pretrain: error: {error}; once there is room: {command}", file=sys.stderr)
        return 1
    if cli.trainer.is_global_zero:
        _print_results(cli.trainer, cli.run_dir)
    return 0


def _prepare(
    recipe: str | None,
    data: str | None,
    resume: str | None,
    run_dir: Path | None,
    settings: Sequence[str],
    lock: RunLock,
) -> tuple[PretrainCLI, Path | None]:
    """Everything before the first step, so that what the user can mend fails here: the run, its checkpoint."""
    checkpoint, step = None, None
    if resume is not None:
        if run_dir is not None:
            raise ValueError("--run_dir names a new run; a resumed run stays in its folder")
        checkpoint = _find_checkpoint(resume, recipe)
        run_dir = checkpoint.parents[1]
        configs = [run_dir / "config.yaml"]
        if not _rank():
            lock.acquire(run_dir)
        step = load_checkpoint(checkpoint)["global_step"]
    else:
        configs = recipe_files(recipe) if recipe else []
        if not configs and "--config" not in settings and not {"--help", "--print_config"} & set(settings):
            raise ValueError(f"--recipe is missing; recipes: {', '.join(recipe_names())}")
        run_dir = _new_run_dir(run_dir, recipe or "run")
    args = [argument for config in configs for argument in ("--config", str(config))]
    if recipe is not None and resume is None:
        args += ["--recipe", recipe]
    if data is not None:
        args += ["--data.root", data]
    cli = PretrainCLI([*args, *settings], run_dir, step)
    if not _rank():
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
    cli.model.check_batch(cli.datamodule.batch_size)
    cli.open_run(lock)
    return cli, checkpoint


def _message(error: BaseException) -> str:
    # jsonargparse wraps what a constructor says into a list of every type it has tried.
    while "Given value type:" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def _rank() -> int:
    """Of this process, which the launcher tells before anything is set up."""
    return rank_zero_only.rank or 0  # type: ignore[attr-defined]


def _quieten() -> None:
    """Leave the screen to the run: no announcements of Lightning's, none of deprecations inside it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def _new_run_dir(given: Path | None, name: str) -> Path:
    if _RUN_DIR_VARIABLE in os.environ and _rank():
        return Path(os.environ[_RUN_DIR_VARIABLE])
    if given is None and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError("under torchrun every process must know the folder of the run: give --run_dir")
    run_dir = given or RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    os.environ[_RUN_DIR_VARIABLE] = str(run_dir)
    return run_dir


def _find_checkpoint(resume: str, recipe: str | None) -> Path:
    if resume == LATEST:
        pattern = f"{recipe or '*'}-*/checkpoints/last.ckpt"
        found = sorted(RUNS.glob(pattern), key=lambda path: path.stat().st_mtime)
        if not found:
            raise FileNotFoundError(f"nothing to resume: no {RUNS / pattern}")
        return found[-1]
    path = Path(resume)
    checkpoint = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not checkpoint.is_file():
        raise FileNotFoundError(f"nothing to resume: {checkpoint} does not exist")
    if not (checkpoint.parents[1] / "config.yaml").is_file():
        raise FileNotFoundError(f"{checkpoint} does not lie in a run directory (there is no config.yaml)")
    return checkpoint


def _print_results(trainer: Trainer, run_dir: Path) -> None:
    knn = next(callback for callback in trainer.callbacks if isinstance(callback, OnlineKNN))  # type: ignore[attr-defined]
    print(f"kNN accuracy (k = {knn.k})")
    rows = [("raw pixels", knn.pixels), ("untrained encoder", knn.untrained)]
    rows += [(f"after epoch {epoch}", accuracy) for epoch, accuracy in knn.history[-1:]]
    for name, accuracy in rows:
        if accuracy is not None:
            print(f"  {name:<18} {accuracy:5.1f} %")
    print(f"checkpoint  {trainer.checkpoint_callback.path}")  # type: ignore[union-attr]
    print(f"report      {run_dir / 'report' / 'index.html'}")
