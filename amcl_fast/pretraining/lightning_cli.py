"""A run put together from its settings: Lightning's command line with the callbacks and loggers of this package."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..extras import extras_named

with extras_named("training"):
    import yaml
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.cli import LightningArgumentParser
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.trainer import Trainer

from ..callbacks import (
    Checkpoint,
    End,
    EpochSummary,
    EventsFile,
    ExactResume,
    Guard,
    LastStep,
    MetricsFile,
    OnlineKNN,
    OpenRun,
    Others,
    ProgressBar,
    Report,
    SaveOnSignal,
    SkippedFiles,
    StopSignals,
    Throughput,
)
from ..data import ContrastiveDataModule
from ..launch import rank
from ..methods import Method
from ..models import BackboneConfig
from ..models.resnet import RESNETS
from ..models.sizes import ANY_SIZE, takes_any_size
from ..models.timm_models import TIMM_PREFIX
from ..paths import absolute_data, expanded, find_data
from ..runs.checkpoint import load_checkpoint
from ..runs.directory import NewFolder, RunDirectory, aside
from ..runs.files import Unwritten, copy_file, write_file
from ..runs.resuming import FinishedError, Resumed
from ..runs.settings import changed_lengths, changes, refused_changes
from .given import NOTHING, CLIOfGiven, Given
from .reading import Building, SettingsParser
from .trainer_settings import TrainerParts, check_trainer, let_speak, refuse_useless
from .view_settings import with_listed_views

# Reads the same ten times as fast, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_PATHS = ("root", "held_out", "evaluation")
"""Settings of the data that are paths."""


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


class PretrainCLI(CLIOfGiven):
    """LightningCLI with the settings of this package's callbacks, all output in one run directory.

    Args:
        args: settings as command-line arguments; of a resumed run, those that change.
        run_dir: where everything of the run goes.
        resumed: what the run goes on from, None for a new run.
        signals: whose handlers are set; None: they are set while training lasts.
        folder: of a new run; it is made once the settings are known to be good, and replaces `run_dir`.
        given: what comes as objects and not as settings.

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
        given: Given = NOTHING,
    ) -> None:
        self.run_dir = run_dir
        self.given = given
        self.lengths = ""  # of a resumed run, where they change
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
            parser_class=SettingsParser,
            trainer_defaults={"enable_model_summary": False, "num_sanity_val_steps": 0},
            args=args,
            run=False,
            auto_configure_optimizers=False,
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

    def parse_arguments(self, parser: SettingsParser, args: Any) -> None:  # type: ignore[override]
        # The parent warns of `args` beside sys.argv; here they are what remains of it.
        resumed = self.resumed
        own = [] if resumed is None or resumed.as_new else resumed.argument
        self._building = Building(parser, [*own, *args])
        if resumed is None or resumed.as_new:
            self.config = with_listed_views(parser.read, args)
            refuse_useless(self.config.trainer, self._known_dir)
            self._settle(absolute_data, absolute_data, absolute_data)
            self._set_backbone_size()
            self._place_weights()
            return
        self.config = parser.read([*own, *args])
        before = parser.read(own) if args else self.config.clone()
        refuse_useless(self.config.trainer, self._known_dir, before.trainer)
        then, now = (self._plain(config, parser) for config in (before, self.config))
        changed = refused_changes(then, now)
        if changed and resumed.command:
            # What such a command makes of a new run's settings: paths, sizes, groups of views.
            other = changes(then, parsed([*resumed.command]))
            for name in changed.keys() - other.keys():
                self.config[name] = before[name]
            changed = {name: change for name, change in changed.items() if name in other}
        if changed:
            first = "; ".join(f"{name} from {change}" for name, change in list(changed.items())[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ValueError(
                f"a resumed run goes on with its own settings, got {first}{more}; what may change is the length of "
                "the training, the devices, logging, data.root, where data.held_out and data.evaluation lie, threads, "
                f"and knn, checkpoint, guard and report. Nothing in {self.run_dir} was changed"
            )
        self.lengths = changed_lengths(then, now)
        # In Python its checkpoint is loaded all the same, for what is returned.
        if resumed.finished and not self.lengths and not self.given.in_python:
            raise FinishedError(f"{self.run_dir} has finished: there is nothing left to train")
        if resumed.finished and resumed.checkpoint is None:
            raise FileNotFoundError(f"{self.run_dir} has finished and holds no checkpoint: nothing can go on from it")

        def placed(name: str) -> Callable[[str], str]:
            kept = self.config.data[name] == before.data[name]
            return lambda path: find_data(path, self.run_dir) if kept else absolute_data(path)

        self._settle(*map(placed, _PATHS))
        self._set_backbone_size()

    def _settle(self, *places: Callable[[str], str]) -> None:
        """Refuse what cannot be, and keep paths such that the run can go on from anywhere."""
        check_trainer(self.config.trainer)
        let_speak(self.config.trainer)
        data = self.config.data
        for name, placed in zip(_PATHS, places, strict=True):
            data[name] = placed(data[name]) if self.given.data is None and (data[name] or name == "root") else None
        data.root = data.root or self.given.named["data"]

    @property
    def _files(self) -> RunDirectory:
        return RunDirectory(self.run_dir)

    @property
    def _known_dir(self) -> Path | None:
        """The run directory, None where the name of a new one is still to be found."""
        return self.run_dir if self._folder is None else self._folder.given

    def before_instantiate_classes(self) -> None:
        if self._folder is not None:
            self._folder.temporary = self.rehearses
            self.run_dir = self._folder.reserve()

    @property
    def rehearses(self) -> bool:
        """Whether the run tries out whether everything works, and leaves nothing behind."""
        return bool(self.config.trainer.fast_dev_run)

    def _set_backbone_size(self) -> None:
        """Build a ResNet for images of any size, other encoders for those of data.size; a resumed run keeps what was.

        With views of several sizes it is built for these, where timm's constructor can be told so.

        Raises:
            ValueError: the settings say another one.
        """
        backbone, size = self._backbone, self.config.data.size
        if backbone is None:
            return
        if self.given.backbone is not None:
            for name, value in vars(BackboneConfig(self.given.named["backbone"], size=size)).items():
                backbone[name] = value
            return
        as_new = self.resumed is None or self.resumed.as_new
        if as_new and backbone.get("size") not in (None, size):
            raise ValueError(f"model.backbone.size must be data.size, {size}, or unset, got {backbone.size}")
        if backbone.get("name") in RESNETS:
            backbone.size = None  # older runs have one, without effect
        elif as_new:
            backbone.size = size
            views = self.config.data.views
            several = isinstance(views, list) and any(view.get("size") not in (None, size) for view in views)
            of_timm = backbone.name.startswith(TIMM_PREFIX)
            if several and of_timm and takes_any_size(backbone.name.removeprefix(TIMM_PREFIX), size):
                backbone.arguments = {ANY_SIZE: True, **backbone.arguments}

    def _place_weights(self) -> None:
        """Keep the path of the encoder's weights such that the run can begin anew from anywhere."""
        if self._backbone is not None and self._backbone.get("weights"):
            self._backbone.weights = os.path.abspath(expanded(self._backbone.weights))

    @property
    def _backbone(self) -> Any:
        """Settings of the encoder; None where the method has none, or another's."""
        backbone = self.config.get("model.init_args.backbone")
        return backbone if hasattr(backbone, "get") else None

    @staticmethod
    def _plain(config: Any, parser: LightningArgumentParser) -> dict[str, Any]:
        settings = yaml.load(_as_yaml(config, parser), Loader=_LOADER)
        return {name: value for name, value in settings.items() if name != "config"}

    def open_run(self) -> None:
        """Write the settings into the directory of a new run.

        Raises:
            OSError: they cannot be written.
        """
        if not rank() and self.resumed is None:
            write_file(self._files.config, self._yaml)

    def discard(self) -> None:
        """Remove the directory of a new run in which nothing was begun."""
        if self._folder is not None:
            if not self._folder.temporary:
                self._files.config.unlink(missing_ok=True)
            self._folder.give_up()

    def _open_resumed(self) -> None:
        """What changes in the directory of a run once its resume has succeeded."""
        self._parts.tell_settings(self.config_dump)
        self._unwritten.keep(path := self._files.config, self.run_dir, lambda: write_file(path, self._yaml))
        if self.resumed is None:
            return
        self._put_aside_what_is_later()
        self._files.clear()
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

    @functools.cached_property
    def _yaml(self) -> str:
        return _as_yaml(self.config, self.parser) + self.given.recorded

    def instantiate_classes(self) -> None:
        # Plain types: the checkpoint loads with weights_only, and `Method.load_from_checkpoint` rebuilds.
        settings = yaml.load(self._yaml, Loader=_LOADER)
        # The parent would dump them once more, links with their targets.
        self.config_dump = {**settings, "data": {**settings["data"], "seed": self.config.data.seed}}
        weights = None if self._backbone is None else self._backbone.get("weights")
        if weights and self.resumed is not None and self.resumed.checkpoint is not None:
            # Those of the checkpoint come in their place, and the file may be gone.
            self._backbone.weights = None
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            raise self._building.told(error) from error
        self.checkpoint.settings = settings
        if self.given.method is not None:
            self.model = self.given.method
            return
        if weights:
            self._backbone.weights = weights
        model = settings["model"]
        self.model.save_hyperparameters(
            {
                "_instantiator": "lightning.pytorch.cli.instantiate_module",
                "_class_path": model["class_path"],
                **model["init_args"],
                # The checkpoint has the weights: whoever rebuilds the method from it needs no file beside it.
                **({"backbone": {**model["init_args"]["backbone"], "weights": None}} if weights else {}),
            },
            logger=False,
        )

    @property
    def checkpoint(self) -> Checkpoint:
        """The callback that saves."""
        return self.callback(Checkpoint)

    def callback(self, kind: type) -> Any:
        """The trainer's callback of a kind of this package."""
        return next(callback for callback in self.trainer.callbacks if type(callback) is kind)  # type: ignore[attr-defined]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        step = None if self.resumed is None else self.resumed.step
        given = self._get(self.config_init, "trainer")
        self._parts = TrainerParts(given, self.run_dir)
        self._parts.set_up(self.datamodule)
        loggers: list[Logger] = [MetricsFile(self.run_dir, step), EventsFile(self.run_dir, step)]
        bar = given["enable_progress_bar"]
        try:
            return super().instantiate_trainer(
                logger=[*loggers, *self._parts.loggers],
                default_root_dir=self.run_dir,
                enable_progress_bar=sys.stdout.isatty() if bar is None else bar,
                **self._parts.in_place_of_settings(),
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
        self._parts.set_up_callbacks(callbacks, self.datamodule.batch_size)
        # What may fail comes before whatever writes, the user's callbacks included; the list of bad files before kNN,
        # which may find the first of them.
        begin = [Others(), ExactResume(), self.opening, SkippedFiles(), LastStep()]
        config["callbacks"] = [*begin, *self._parts.callbacks, *self.given.callbacks]
        end = End()
        progress = [end, ProgressBar(end)] if config["enable_progress_bar"] else [EpochSummary()]
        extra = [Throughput(), on_signal, *progress]
        return super()._instantiate_trainer(config, [*callbacks, *extra])


class Unbuilt(PretrainCLI):
    """The settings of a new run, of which nothing is built."""

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...


def parsed(args: list[str]) -> dict[str, Any]:
    """All settings of a new run, as its config.yaml will have them.

    Raises:
        ValueError: one is unknown, out of range or of no effect.
    """
    return yaml.load(Unbuilt(args, Path())._yaml, Loader=_LOADER)


def _as_yaml(config: Any, parser: LightningArgumentParser) -> str:
    """Settings as config.yaml has them. What has been parsed is known to be good."""
    return parser.dump(config, skip_unset=False, skip_validation=True, format="yaml")
