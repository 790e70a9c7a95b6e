"""Whole training steps: where the time of a recipe goes.

A row: `recipe`, `images_per_second`, `steps`, and `milliseconds`, the median of each of `PHASES` over the steps:
waiting for images; the encoder and its heads; the loss, forward and backward; the optimiser, clipping included;
what the trainer does between these.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PHASES = ("data", "encoder, forward", "loss", "encoder, backward", "optimiser", "trainer")
_WARM_UP = 4


def recipes() -> list[str]:
    """Baseline and AMCL of every framework on the built-in images."""
    from amcl_fast.recipes import FRAMEWORKS

    return [f"{framework}-builtin-{variant}" for framework in FRAMEWORKS for variant in ("baseline", "amcl")]


def measure(recipe: str, steps: int = 25) -> dict[str, Any]:
    """The row of one recipe, trained for `steps` steps after a warm-up by its own data module, method and trainer.

    Raises:
        ValueError: there is no such recipe.
        ImportError: the trainer's packages are missing.
    """
    import lightning

    from amcl_fast.pretraining.lightning_cli import PretrainCLI
    from amcl_fast.recipes import recipe_files

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    arguments = [part for path in recipe_files(recipe) for part in ("--config", str(path))]
    total = _WARM_UP + steps
    with tempfile.TemporaryDirectory() as folder:
        cli = PretrainCLI(arguments, Path(folder, "run"), None)
        clock = _clock()
        trainer = lightning.Trainer(
            max_steps=total,
            # With steps alone the schedule cannot tell the length of an epoch.
            max_epochs=total,
            precision=cli.config["trainer"]["precision"],
            gradient_clip_val=cli.config["trainer"]["gradient_clip_val"],
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=1,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(cli.model, datamodule=cli.datamodule)
    return {"recipe": recipe, **summary(clock.steps[_WARM_UP:], cli.datamodule.batch_size)}


def summary(steps: list[dict[str, float]], batch_size: int) -> dict[str, Any]:
    """Figures of a row from the milliseconds of each step's phases."""
    return {
        "images_per_second": batch_size * 1e3 * len(steps) / sum(sum(step.values()) for step in steps),
        "steps": len(steps),
        "milliseconds": {phase: statistics.median(step[phase] for step in steps) for phase in PHASES},
    }


def _clock() -> Any:
    """A Lightning callback that takes the time of each step's phases; its `steps` holds milliseconds by phase.

    The loss has its forward and its backward pass: from the call of the criterion to its result, and from there to the
    last gradient of its inputs. On a GPU the marks are events on its stream.
    """
    import lightning

    class Clock(lightning.Callback):
        def __init__(self) -> None:
            self.steps: list[dict[str, float]] = []
            self._marks: dict[str, Any] = {}
            self._waited = 0.0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            _watch(pl_module.criterion, self._mark)
            self._mark("end")

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self._mark("start")

        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
            self._mark("backward")

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            self._mark("optimiser")

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            previous = self._marks.pop("end")
            self._mark("end")
            at = {name: self._milliseconds(previous, mark) for name, mark in self._marks.items()}
            waited = trainer.train_dataloader.wait_seconds
            data = (waited - self._waited) * 1e3
            self._waited = waited
            self.steps.append(
                {
                    "data": data,
                    "encoder, forward": at["loss"] - at["start"],
                    "loss": at["loss forward"] - at["loss"] + at["loss backward"] - at["backward"],
                    "encoder, backward": at["optimiser"] - at["loss backward"],
                    "optimiser": at["end"] - at["optimiser"],
                    "trainer": max(0.0, at["start"] - data) + at["backward"] - at["loss forward"],
                }
            )

        def _mark(self, name: str) -> None:
            if torch.cuda.is_available():
                self._marks[name] = torch.cuda.Event(enable_timing=True)
                self._marks[name].record()
            else:
                self._marks[name] = time.perf_counter()

        @staticmethod
        def _milliseconds(begin: Any, end: Any) -> float:
            if torch.cuda.is_available():
                end.synchronize()
                return begin.elapsed_time(end)
            return (end - begin) * 1e3

    return Clock()


def _watch(criterion: nn.Module, mark: Callable[[str], None]) -> None:
    """Mark `loss` at the criterion's call, `loss forward` at its end, `loss backward` at its inputs' last gradient."""

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for z in inputs:
            if isinstance(z, Tensor) and z.requires_grad:
                z.register_hook(lambda gradient: mark("loss backward"))
        mark("loss")

    criterion.register_forward_pre_hook(before)
    criterion.register_forward_hook(lambda *_: mark("loss forward"))
