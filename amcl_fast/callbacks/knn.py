"""kNN accuracy of the features while they are learned, and that of a linear probe."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from ..data.scan.headers import NONE_MEASURED, NoImageLeftError
from ..distributed import apart, exchange, in_step, world
from ..evaluate import ShuffledFeatures, knn_accuracy, linear_probe
from ..evaluate.features import Extract, NonFiniteFeaturesError, NothingToEvaluateError, collect, encoding, pixels
from ..methods.trainer import NonFiniteError, begins, epoch_is_over
from ..models.modes import in_mode
from ..progress import Loop
from ..setting_types import real, whole
from ..temperature import SMALLEST_TAU
from .neighbours import Nearest, nearest_images

PROBE = "probe/accuracy"
"""Name of the probe's metric, of the encoder while it is trained."""

_UNTRAINED_PROBE = "probe/untrained"
_PIXELS = 32
"""Side of the raw pixels that are compared: of more, neighbours are no better, and memory grows with the square."""

_MOST_PIXEL_BYTES = 1 << 30
"""What the raw pixels of bank and queries may take. Those of 60,000 images of 32 pixels, CIFAR-10's, take 0.7 GiB."""

_PROBE_BATCH = 256
_PROBE_MEETING = 64
"""Steps of the probe between two calls of `between_batches` in several processes, at the most: some take 1 ms."""


class _Accuracies(NamedTuple):
    """In percent, the same in all processes: of kNN by each kind of features, and of the probe by the last of them."""

    knn: list[float]
    probe: float | None


class OnlineKNN(L.Callback):
    """kNN on the encoder's features: training images are the bank, held-out images the queries.

    Raw pixels and the untrained encoder are measured once before training, as the baselines of the run. Where the data
    module's `unmeasurable` says that there is nothing to measure, that is one line before training. All processes
    encode, each its part of the images, and compare on the module's device.

    Args:
        every_n_epochs: measure after every n-th epoch, and at the end of training; 0: kNN is off.
        k: neighbours, all of them in a smaller bank.
        temperature: neighbours vote with exp(similarity / temperature).
        bank: training images at the most, always the same ones, as many of each class as nearly as possible; 0: kNN is
            off. `data.limit` comes first: the bank is of what is trained on.
        queries: the same of the held-out images; 0: kNN is off. `data.limit` changes nothing here.
        before_training: measure the two baselines. Raw pixels are averaged down to 32 a side, and left out where those
            of bank and queries take more than 1 GiB, 87,000 images of 32 pixels.
        probe_epochs: whenever kNN is measured, train linear classifiers on the same features of the bank for so many
            epochs, as `evaluate.linear_probe` does, and measure the best one on the queries; 0: none. The training goes
            on as without it: nothing but the features is used, and no random number is drawn from the run's.

    Measuring that was cut short after an epoch is made up for when the run goes on.

    Of a data module it takes `features_loaders`, `measured_images`, `num_classes` and `size`, as
    `ContrastiveDataModule` has them. One without `measured_images` is measured whole, by the first process, with
    `features_loaders()`.

    Attributes:
        between_batches: called with the trainer while an epoch or the end is measured, in all processes at the same
            time; it may raise, in all of them.
        neighbours: how many voted when it was measured last: k, or all images of a smaller bank; None before.
        unmeasurable: why nothing is measured; None if something is, and before training.
        sampled: images of bank and queries, as they were measured last; before that, those that will be, if known.
        before: what `sampled` was before a resume changed it, with the last `epoch` that it holds for, 0: the baselines
            alone.
        closed: whether the last of `history` was measured because training ended, after any save of its epoch.
        pixels, untrained: the two baselines in percent, None before training, or if they are not measured.
        untrained_probe: the untrained encoder's by the probe.
        history: (epoch, accuracy in percent), epochs counted from 1. The last one is of the end of training, inside
            that epoch or after it; when the training goes on, what would not have been measured is left out.
        probed: the same of the probe.
        seconds: how long each measuring of the encoder took, of this process's training.
        found: what its last measuring in this process found beside the accuracy: nearest training images of some
            held-out ones; and (num_classes, 2) int64, held-out images of each class that are right, and all.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        k: int = 200,
        temperature: float = 0.1,
        bank: int = 50_000,
        queries: int = 10_000,
        before_training: bool = True,
        probe_epochs: int = 0,
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("bank", bank), ("queries", queries)):
            whole(f"knn.{name}", value, 0, of=", which measures no kNN")
        whole("knn.probe_epochs", probe_epochs, 0, of=", which measures no probe")
        whole("knn.k", k, 1)
        if real("knn.temperature", temperature, 0) < SMALLEST_TAU:
            raise ValueError(f"knn.temperature must be a number above 0, at least {SMALLEST_TAU}, got {temperature}")
        self.every_n_epochs = every_n_epochs
        self.k = k
        self.temperature = temperature
        self.bank, self.queries = bank, queries
        self.before_training = before_training
        self.probe_epochs = probe_epochs
        if probe_epochs and self.off is not None:
            raise ValueError(f"knn.probe_epochs must be 0 where {self.off}, got {probe_epochs}")
        self.neighbours: int | None = None
        self.unmeasurable: str | None = None
        self.sampled: dict[str, int] = {}
        self.before: list[dict[str, int]] = []
        self._asked: dict[str, int] | None = None  # images, bad ones included; None: of an older run
        self.pixels: float | None = None
        self.untrained: float | None = None
        self.untrained_probe: float | None = None
        self.history: list[tuple[int, float]] = []
        self.probed: list[tuple[int, float]] = []
        self.seconds: list[float] = []
        self.between_batches: Callable[[L.Trainer], None] | None = None
        self._pending: int | None = None  # the epoch that is being measured
        self.closed = False
        self.found: tuple[Nearest, Tensor] | None = None

    @property
    def off(self) -> str | None:
        """The setting that switches kNN off, None if none does."""
        settings = {"every_n_epochs": self.every_n_epochs, "bank": self.bank, "queries": self.queries}
        return next((f"knn.{name} is 0" for name, value in settings.items() if value == 0), None)

    def due(self, done: int, until: int) -> int:
        """After how many epochs kNN is measured, of those that come after so many, up to the one numbered `until`."""
        if self.off is not None or self.unmeasurable is not None:
            return 0
        return max(until // self.every_n_epochs - done // self.every_n_epochs, 0)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if begins(trainer, stage):
            self.pixels = self.untrained = self.untrained_probe = self.neighbours = self._pending = None
            self.history, self.probed, self.closed, self.seconds = [], [], False, []
            self.sampled, self.before, self._asked = {}, [], None

    def state_dict(self) -> dict[str, Any]:
        return {
            "pixels": self.pixels,
            "untrained": self.untrained,
            "untrained_probe": self.untrained_probe,
            "history": list(self.history),
            "probed": list(self.probed),
            "pending": self._pending,
            "neighbours": self.neighbours,
            "closed": self.closed,
            "sampled": dict(self.sampled),
            "before": [dict(entry) for entry in self.before],
            "asked": None if self._asked is None else dict(self._asked),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pixels, self.untrained = state_dict["pixels"], state_dict["untrained"]
        self.history = [(epoch, accuracy) for epoch, accuracy in state_dict["history"]]
        self.untrained_probe = state_dict.get("untrained_probe")
        self.probed = [(epoch, accuracy) for epoch, accuracy in state_dict.get("probed", [])]
        self._pending = state_dict.get("pending")
        self.closed = state_dict.get("closed", False)
        self.neighbours = state_dict.get("neighbours")
        self.sampled = dict(state_dict.get("sampled", {}))
        self.before = [dict(entry) for entry in state_dict.get("before", [])]
        self._asked = state_dict.get("asked")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.closed:
            epoch, _ = self.history.pop()
            self.probed = [entry for entry in self.probed if entry[0] != epoch]
            self.closed = False
        whole = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        self.history = [entry for entry in self.history if entry[0] <= whole]  # of older versions
        if self.off is not None:
            self.unmeasurable, self._pending = f"kNN is off: {self.off}", None
            if trainer.is_global_zero:
                print(self.unmeasurable, flush=True)
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        # Data modules of others need not know of it.
        unmeasurable = getattr(datamodule, "unmeasurable", None)
        # Each process has looked for itself, and a folder changes; those that differ would wait for each other.
        self.unmeasurable = trainer.strategy.broadcast(unmeasurable)
        if self.unmeasurable is not None:
            self._pending = None
            if trainer.is_global_zero:
                print(f"kNN is not measured: {self.unmeasurable}", flush=True)
            return
        if hasattr(datamodule, "measured_images"):
            self._note_sample(trainer, datamodule)
        if self._pending is not None:
            found = self._measure(trainer, pl_module, self._pending)
            _log(trainer, trainer.global_step - 1, found)  # as Lightning counts
            self._pending = None
        if self.before_training and trainer.global_step == 0:
            if self.untrained is None:
                self._measure_baselines(trainer, pl_module)
            self._log_baselines(trainer)  # after a resume too: the log goes on before this step

    def _note_sample(self, trainer: L.Trainer, datamodule: Any) -> None:
        """Take note of what will be measured, and say so where what was measured before is another sample."""
        names = "bank", "queries"
        asked = dict(zip(names, datamodule.measured_images(self.bank, self.queries), strict=True))
        if self.history or self.untrained is not None:
            if self._asked is None:  # earlier versions measured all images
                self._asked = self.sampled = dict(zip(names, datamodule.measured_images(), strict=True))
            if self._asked != asked:
                self.before.append({"epoch": self.history[-1][0] if self.history else 0, **self.sampled})
                if trainer.is_global_zero:
                    print(f"kNN is now of {_counts(asked)}, before of {_counts(self._asked)}", flush=True)
        self._asked = asked
        self.sampled = self.sampled or dict(asked)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if self.due(epoch - 1, epoch) and epoch_is_over(trainer):
            self._pending = epoch
            found = self._measure(trainer, pl_module, epoch, self.between_batches)
            self._pending = None
            for name, accuracy in found.items():
                # All processes have the same number, and the largest of them is that.
                pl_module.log(name, accuracy, prog_bar=True, sync_dist=True, reduce_fx="max")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.fit_loop.epoch_progress.current.started  # type: ignore[attr-defined]
        if not epoch or (self.history and self.history[-1][0] >= epoch):
            return
        if found := self._measure(trainer, pl_module, epoch, self.between_batches):
            self.closed = True
            _log(trainer, trainer.global_step, found)

    def _measure_baselines(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        kinds = [encoding(pl_module.backbone, pl_module.device)]  # type: ignore[arg-type]
        images = sum((self._asked or {}).values())
        if images == 0 or images * 3 * min(datamodule.size, _PIXELS) ** 2 * 4 <= _MOST_PIXEL_BYTES:
            kinds.insert(0, pixels(_PIXELS))
        elif trainer.is_global_zero:
            print(f"raw pixels are not compared: those of {images:,} images take more than 1 GiB", flush=True)
        found = self._accuracies(trainer, pl_module, kinds)
        if found is None:
            return
        *of_pixels, self.untrained = found.knn
        self.pixels = of_pixels[0] if of_pixels else None
        self.untrained_probe = found.probe

    def _log_baselines(self, trainer: L.Trainer) -> None:
        measured = {"knn_pixels": self.pixels, "knn_untrained": self.untrained, _UNTRAINED_PROBE: self.untrained_probe}
        if known := {name: value for name, value in measured.items() if value is not None}:
            _log(trainer, 0, known)

    def _measure(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        epoch: int,
        between_batches: Callable[[L.Trainer], None] | None = None,
    ) -> dict[str, float]:
        """Accuracies in percent of the module's encoder by their metrics' names; {} where nothing can be measured."""
        started = time.monotonic()
        backbone: Any = pl_module.backbone
        try:
            found = self._accuracies(trainer, pl_module, [encoding(backbone, pl_module.device)], between_batches)
        except NonFiniteFeaturesError as error:
            raise NonFiniteError(trainer, f"kNN cannot be measured: {error}") from error
        if found is None:
            return {}
        self.seconds.append(time.monotonic() - started)
        self.history.append((epoch, found.knn[0]))
        if found.probe is None:
            return {"knn": found.knn[0]}
        self.probed.append((epoch, found.probe))
        return {"knn": found.knn[0], PROBE: found.probe}

    def _accuracies(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        kinds: list[Extract],
        between_batches: Callable[[L.Trainer], None] | None = None,
    ) -> _Accuracies | None:
        """None where nothing can be measured, from the first time on that a part of the images is found to be gone."""
        if self.unmeasurable is not None:
            return None
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        backbone: Any = pl_module.backbone
        lines = trainer.global_step == 0  # later the epochs have theirs

        def meet() -> None:
            if between_batches is not None:
                between_batches(trainer)

        try:
            rank, world_size = world()
            if hasattr(datamodule, "measured_images"):
                loaders = datamodule.features_loaders(self.bank, self.queries, shard=rank, num_shards=world_size)
            else:
                loaders = ((), ()) if rank else datamodule.features_loaders()
            with trainer.precision_plugin.forward_context(), in_mode(backbone, training=False):
                (bank, bank_labels), (queries, query_labels) = (
                    collect(_shown(loader, f"kNN, batches of {name} images", lines), kinds, shared=True, meet=meet)
                    for loader, name in zip(loaders, ("training", "held-out"), strict=True)
                )
        except (NoImageLeftError, NothingToEvaluateError):  # in all processes
            self.unmeasurable = datamodule.unmeasurable = NONE_MEASURED
            if trainer.is_global_zero:
                print(f"kNN is not measured any more: {NONE_MEASURED}", flush=True)
            return None
        counts = exchange((len(bank_labels), len(query_labels)))
        self.sampled = dict(zip(("bank", "queries"), map(sum, zip(*counts, strict=True)), strict=True))
        self.neighbours = min(self.k, self.sampled["bank"])
        accuracies = []
        for own_bank, own_queries in zip(bank, queries, strict=True):
            by_class = torch.zeros(datamodule.num_classes, 2, dtype=torch.int64, device=pl_module.device)
            with apart():
                parts = [part.to(pl_module.device) for part in (own_bank, bank_labels, own_queries, query_labels)]
            accuracies.append(
                knn_accuracy(
                    *parts,
                    k=self.k,
                    temperature=self.temperature,
                    num_classes=datamodule.num_classes,
                    shared=True,
                    progress=lambda loop, what: _met(_shown(loop, what, lines), meet),
                    by_class=by_class,
                )
            )
        self.found = nearest_images((loaders[0], loaders[1]), *parts), by_class
        if not self.probe_epochs:
            return _Accuracies(accuracies, None)
        return _Accuracies(accuracies, self._probe(*parts, num_classes=datamodule.num_classes, meet=meet))

    def _probe(
        self,
        bank: Tensor,
        bank_labels: Tensor,
        queries: Tensor,
        query_labels: Tensor,
        *,
        num_classes: int,
        meet: Callable[[], None],
    ) -> float:
        found = linear_probe(
            ShuffledFeatures(bank, bank_labels, _PROBE_BATCH, shared=True),
            queries,
            query_labels,
            num_classes=num_classes,
            epochs=self.probe_epochs,
            batch_size=_PROBE_BATCH,
            device=bank.device,
            shared=True,
            progress=lambda steps, _: in_step(steps, meet, _PROBE_MEETING),
        )
        return found.top1[found.best]


def _met(tiles: Iterable[Any], meet: Callable[[], None]) -> Iterable[Any]:
    """Tiles of the bank, of which each process has its own number: seconds in all where there are several."""
    return in_step(tiles, meet) if world()[1] == 1 else tiles


def _shown(loop: Any, what: str, lines: bool) -> Any:
    """The loop with its progress, which the first process shows; one of unknown length as it is."""
    return Loop(loop, what, shown=not world()[0], lines=lines) if hasattr(loop, "__len__") else loop


def _counts(images: dict[str, int]) -> str:
    return f"{images['queries']:,} held-out images, by {images['bank']:,} training images"


def _log(trainer: L.Trainer, step: int, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers if metrics else ():
        logger.log_metrics(metrics, step=step)
