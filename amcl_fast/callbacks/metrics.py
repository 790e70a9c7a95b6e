"""metrics.csv, which goes on after a resume."""

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class MetricsFile(Logger):
    """Appends one row per logged step to `metrics.csv`; columns are `step` and every metric seen so far.

    Lightning's CSVLogger deletes what an earlier run wrote, and holds rows back.

    Args:
        folder: run directory.
        resume_step: keep the rows before this step, as those after it are written again; None: no rows yet.

    Raises:
        FileExistsError: `metrics.csv` is there although nothing is resumed.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns = ["step"]
        self._prepare(resume_step)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        new = [name for name in row if name not in self._columns]
        if new or not self.path.exists():
            rows = self._read() if self.path.exists() else []
            self._columns += new
            self._rewrite([*rows, row])
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def _prepare(self, resume_step: int | None) -> None:
        if not self.path.exists():
            return
        if resume_step is None:
            raise FileExistsError(
                f"{self.path} exists, and two runs never share a folder; give another --run_dir, or go on with that "
                f"run: --resume {self.path.parent}"
            )
        rows = self._read()
        if not self.path.read_text().endswith("\n"):
            rows = rows[:-1]  # half a line, of a run killed while it wrote
        self._rewrite([row for row in rows if int(row["step"]) < resume_step])

    def _read(self) -> list[dict[str, Any]]:
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file, restval="")
            self._columns = list(reader.fieldnames or ["step"])
            return list(reader)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, self.path)
