"""What a run from Python returns."""

import warnings
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from torch import nn

from ..callbacks import OnlineKNN
from ..methods import Method
from ..methods.trainer import out_of_time
from ..runs.directory import RunDirectory
from ..runs.table import read_table
from .lightning_cli import PretrainCLI


@dataclass(frozen=True, repr=False)
class Pretrained:
    """A run that has ended. Of several processes the first writes the files, which others may be too early to see.

    Attributes:
        encoder: normalised images (n, 3, H, W) to features (n, feature_dim), in evaluation mode, on the CPU.
        method: what was trained, the encoder and the heads.
        metrics: rows of metrics.csv, by name; what a row has not is left out. `pandas.DataFrame(metrics)` is a table.
        knn: accuracy in percent of the raw `pixels`, of the `untrained` encoder and of the `trained` one; None where it
            was not measured.
        run_dir: where everything of the run lies.
        checkpoint: from which it goes on; None: nothing was saved.
        report: page of pictures; None: there is none.
        epochs, steps: done, those before a resume included.
        stopped: the setting that has ended it before its last step; None: none has.
        size: side of the training images, in pixels.
        mean, std: normalisation of the encoder's inputs, per channel, of pixels in [0, 1].
    """

    encoder: nn.Module
    method: Method
    metrics: list[dict[str, float]]
    knn: dict[str, float | None]
    run_dir: Path
    checkpoint: Path | None
    report: Path | None
    epochs: int
    steps: int
    stopped: str | None
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __repr__(self) -> str:
        measured = ", ".join(f"{name} {value:.1f} %" for name, value in self.knn.items() if value is not None)
        loss = next((f"{row['loss']:.4g}" for row in reversed(self.metrics) if "loss" in row), "not logged")
        return (
            f"Pretrained({type(self.method).__name__}, {_count(self.epochs, 'epoch')}, {_count(self.steps, 'step')}, "
            f"loss {loss}, "
            f"kNN {measured or 'not measured'}; {self.run_dir})"
        )

    def _repr_html_(self) -> str:
        """A table, and a link to the report, for notebooks."""
        rows = {"method": type(self.method).__name__, "epochs": self.epochs, "steps": self.steps}
        rows |= {f"kNN, {name}": f"{value:.1f} %" for name, value in self.knn.items() if value is not None}
        rows |= {"stopped by": self.stopped} if self.stopped else {}
        cells = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items()
        )
        place = escape(str(self.report or self.run_dir))
        return f'<table>{cells}</table><a href="{place}">{place}</a>'


def pretrained(cli: PretrainCLI) -> Pretrained:
    """What a run has come to."""
    files, trainer = RunDirectory(cli.run_dir), cli.trainer
    knn, data = cli.callback(OnlineKNN), cli.datamodule
    method: Any = cli.model.cpu()
    return Pretrained(
        encoder=method.backbone.eval(),
        method=method,
        metrics=_rows(files.metrics),
        knn={
            "pixels": knn.pixels,
            "untrained": knn.untrained,
            "trained": knn.history[-1][1] if knn.history else None,
        },
        run_dir=cli.run_dir,
        checkpoint=files.last if files.last.is_file() else None,
        report=files.page if files.page.is_file() else None,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        stopped="trainer.max_time" if out_of_time(trainer) else None,
        size=data.size,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _rows(path: Path) -> list[dict[str, float]]:
    try:
        with read_table(path) as table:
            rows = (zip(table.columns, row, strict=True) for row in table)
            return [
                {name: int(float(text)) if name in ("step", "epoch") else float(text) for name, text in row if text}
                for row in rows
            ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:  # the run has ended well
        warnings.warn(f"{error}; `metrics` has no rows", stacklevel=4)
        return []
