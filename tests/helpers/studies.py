"""Results of a study and runs that it finds finished, made by hand; trainings of a study as forks."""

import json
import sys

from amcl_fast.runs.directory import RunDirectory
from amcl_fast.study.epochs import Epochs, summary
from tests.helpers import forks

_IMAGES = {"training_images": 16, "measured_images": {"bank": 16, "queries": 20}}
_UNDRAWN = "from amcl_fast.report import page; page.draw_figures = lambda run: {}; "
_MAIN = "import sys; from amcl_fast.cli import main; sys.exit(main(sys.argv[1:]))"
KILLED = """
from amcl_fast.callbacks import Throughput
from tests.helpers.killing import Kill
kill, usual = Kill(3).on_train_batch_end, Throughput.on_train_batch_end
Throughput.on_train_batch_end = lambda *given: (usual(*given), kill(*given[1:]))
"""
"""What has a training killed within its second epoch, of two steps each."""


def tiny(*more, epochs=1):
    """Settings of trainings of forty images."""
    return [
        *("--data.size", "16", "--data.batch_size", "8", "--data.num_threads", "1", "--data.device", "cpu"),
        *("--trainer.accelerator", "cpu", "--trainer.max_epochs", str(epochs), "--trainer.log_every_n_steps", "1"),
        *("--model.backbone.width", "8", "--model.projector.hidden_dim", "8", "--trainer.precision", "32-true"),
        *more,
    ]


def refusal(capsys, code):
    """The line in which a study that ended with this code was refused."""
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("amcl-fast study: error: ")
    return line.removeprefix("amcl-fast study: error: ")


def finished(run_dir, knn, *, epochs=None, every=1, untrained=20.0, pixels=10.0, **facts):
    """A run directory with so many kNN accuracies; `facts` beside the usual ones."""
    run_dir.mkdir(parents=True)
    files = RunDirectory(run_dir)
    files.config.write_text(f"trainer: {{max_epochs: {epochs or len(knn)}}}\nknn: {{every_n_epochs: {every}}}\n")
    rows = ["step,knn_pixels,knn_untrained,knn", f"0,{pixels},{untrained},"]
    rows += [f"{2 * number + 1},,,{value}" for number, value in enumerate(knn)]
    files.metrics.write_text("\n".join(rows) + "\n")
    files.facts.write_text(json.dumps({"finished": True, "seconds": 60.0, **_IMAGES, **facts}))
    return run_dir


class Forked(forks.Popen):
    """A training as a fork, whose report has no pictures."""

    before = ""

    def __init__(self, command, **given):
        assert command[:3] == [sys.executable, "-m", "amcl_fast.cli"]
        super().__init__([sys.executable, "-c", _UNDRAWN + self.before + _MAIN, *command[3:]], **given)


class Killed(Forked):
    """One that is killed in its second epoch."""

    before = KILLED


KNN = {
    ("small", "baseline"): {0: [25.0, 30.0], 1: [27.0, 34.0]},
    ("small", "amcl"): {0: [28.0, 35.0], 1: [32.0, 41.0]},
    ("large", "baseline"): {0: [40.0, 50.0]},
    ("large", "amcl"): {0: [38.0, 47.5]},
}


def results(knn=None, left=0, **options):
    """What study.json holds of trainings with these accuracies: (backbone, variant) to seed to kNN."""
    knn = KNN if knn is None else knn
    study = Epochs("can", "builtin", ("small", "large"), ("baseline", "amcl"), (0, 1))
    rows = [
        {
            "recipe": f"can-builtin-{variant}-{backbone}",
            "backbone": backbone,
            "variant": variant,
            "seed": seed,
            "run": f"can-builtin-{variant}-{backbone}-{seed}",
            "epochs": [5, 10],
            "knn": values,
            "untrained": 20.0 + seed,
            "pixels": 15.0,
            "seconds": 60.0,
            "measured_images": {"bank": 5000, "queries": 1000},
            "machine": {"device": "cpu"},
        }
        for (backbone, variant), seeds in knn.items()
        for seed, values in seeds.items()
    ]
    about = {
        "what": "kNN",
        "command": "amcl-fast study <b>",
        "machine": {"name": "Some Processor 1", "cores": 2},
        "environment": {"torch": "2.11.0", "date": "2026-01-02", "commit": "0123456789", "dirty": False},
    }
    return {**about, **study.options(), "left": left, **summary(study, rows), "trainings": rows, **options}


def compared(knn):
    """Rows of a comparison's trainings: cell to seed to kNN; ridge is a point above, all of it recalibrated alike."""
    return [
        {
            "cell": cell,
            "seed": seed,
            "run": f"{cell}-{seed}",
            "measures": {
                "knn": value,
                "ridge": value + 1,
                "knn_recalibrated": value,
                "ridge_recalibrated": value + 1,
                "batch_norms": 3,
            },
            "tau": {"negative": [{"mean": 0.1}]},
            "agreement": 0.5,
            "untrained": None,
            "seconds": 60.0,
            "measured_images": {"bank": 5000, "queries": 1000},
            "machine": {"device": "cpu"},
        }
        for cell, seeds in knn.items()
        for seed, value in seeds.items()
    ]
