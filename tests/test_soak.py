"""What a run holds does not grow with its epochs; how `soak` judges a long one."""

import gc
from collections import Counter

import pytest

from amcl_fast.callbacks import OnlineKNN
from amcl_fast.cli import main
from amcl_fast.data import graph
from tests.helpers.command_line import NT_XENT, image_folder
from tests.helpers.soak import held, verdict, windows

_OF = ("amcl_fast", "lightning", "nvidia", "torch")


def test_epochs_with_an_evaluation_and_a_save_each_leave_nothing_behind(tmp_path, monkeypatch):
    seen = []

    def look(*_):
        gc.collect()
        kinds = (type(one) for one in gc.get_objects())
        objects = Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).partition(".")[0] in _OF)
        seen.append((held(), len(graph._pipelines), objects))

    monkeypatch.setattr(OnlineKNN, "on_train_epoch_start", look)
    monkeypatch.setattr(graph, "_pipelines", type(graph._pipelines)())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(f"{NT_XENT}\ntrainer: {{log_every_n_steps: 1, enable_progress_bar: false}}\n")
    images = image_folder(tmp_path / "images", 8, 4)
    arguments = ["--config", "tiny.yaml", "--data", str(images), "--run_dir", "run", "--trainer.max_epochs=6"]
    assert main(["pretrain", *arguments, "--knn.k=3", "--checkpoint.every_n_epochs=1"]) == 0
    assert len(seen) == 6
    assert seen[2] == seen[-1]
    assert seen[-1][1] == 2  # of the training, and of what is measured


def _samples(**growing):
    whole = dict.fromkeys(("rss", "own", "all_pss"), 900 * 1024)
    counts = ("descriptors", "threads", "shared", "children", "maps", "all_descriptors", "processes")
    for step in range(0, 5000, 10):
        at_work = step % 50 < 20  # an evaluation
        more = {name: growing.get(name, 0) * step / 1000 for name in (*whole, *counts)}
        yield {
            "step": step,
            "seconds": step / 10,
            **{name: size + more[name] + 2000 * at_work for name, size in whole.items()},
            **{name: int(20 + more[name]) + 3 * at_work for name in counts},
        }


@pytest.mark.parametrize(
    ("growing", "flat"),
    [({}, True), ({"own": 500}, True), ({"own": 1100}, False), ({"descriptors": 1}, False), ({"threads": 1}, False)],
)
def test_a_soak_is_flat_where_nothing_grows(growing, flat):
    samples = list(_samples(**growing))
    found = verdict(samples, 5000)
    assert found["flat"] is flat
    assert found["own_mib_per_1000_steps"] == pytest.approx(growing.get("own", 0) / 1024, abs=0.05)
    assert found["more_descriptors"] == (3 if "descriptors" in growing else 0)
    parts = windows(samples, 5000)
    assert len(parts) == 10 and parts[0]["rss"] == 900 * 1024 and parts[0]["descriptors"] == 20
