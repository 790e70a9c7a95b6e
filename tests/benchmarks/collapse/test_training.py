"""The study of which settings collapse: its grid, its figures, its file."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.collapse import training as collapse
from benchmarks.collapse.training import LOSSES, Run, Study, grid, looks_at, table, train

TRAIN = 24


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    file = tmp_path_factory.mktemp("pool") / "pool.pt"
    generator = torch.Generator().manual_seed(0)

    def images(*shape):
        return torch.randint(256, (*shape, 3, 32, 32), generator=generator, dtype=torch.uint8)

    torch.save(
        {
            "views": images(TRAIN, 3),
            "train": images(TRAIN, 1),
            "test": images(6, 1),
            "train_labels": torch.arange(TRAIN) % 3,
            "test_labels": torch.arange(6) % 3,
        },
        file,
    )
    return Study(str(file), "cpu", "reference", steps=2, graph=False)


def test_the_grid_begins_in_its_middle_and_every_seed_for_itself():
    losses = ["ntxent-0.5", "ntxent-0.2"]
    runs = grid(losses, ["plain", "both"], [256, 64], ["sgd"], [3, 4], deviations=1)
    assert [run.seed for run in runs] == [3] * 4 + [4] * 4
    assert runs[0] == Run("ntxent-0.5", "plain", 256, "sgd", 3)
    assert {(run.loss, run.head, run.batch) for run in runs[1:4]} == {
        ("ntxent-0.2", "plain", 256),  # a minor loss, in the middle only
        ("ntxent-0.5", "both", 256),
        ("ntxent-0.5", "plain", 64),
    }
    assert len(grid(losses, ["plain", "both"], [256, 64], ["sgd"], [3], deviations=9)) == 8


def test_a_share_of_the_negatives():
    assert LOSSES["topk-25%-adaptive"].selected(64) == (32, 126)
    assert LOSSES["topk-100-adaptive"].selected(32) == (62, 62)
    assert LOSSES["moco-topk-100-adaptive"].selected(64) == (100, collapse.QUEUE)
    assert LOSSES["ntxent-0.5"].selected(64) == (126, 126)


@pytest.mark.parametrize("optimizer", collapse.OPTIMIZERS)
@pytest.mark.parametrize("loss", ["topk-25%-adaptive+", "moco-infonce-0.1"])
def test_a_run_trains_and_is_looked_at(study, loss, optimizer):
    row = train(Run(loss, "hidden", 4, optimizer, 0), study)
    assert [look["step"] for look in row["looks"]] == looks_at(study.steps) == [0, 2]
    first, last = row["looks"]
    assert first["loss"] != last["loss"] and 0 <= row["knn"] <= 100 and row["gradient_norm_end"] > 0
    assert first["d_selected"] <= first["d_negative"]
    assert first["d_shares"] == sorted(first["d_shares"]) and first["d_shares"][-1] <= first["d_negative"]
    assert len(table([row]).splitlines()) == 3


def test_distances_are_those_of_the_projections(study):
    training = collapse._Training(Run("topk-25%-adaptive", "plain", 4, "sgd", 0), study)
    look = training.look()
    with torch.no_grad():
        z = F.normalize(training.encoder(training._batch(training.rows[-1])).transpose(0, 1), dim=-1)  # (3, 8, d)
    square = torch.cdist(z.double(), z.double()).square()
    own = torch.arange(8)
    assert look["d_positive"] == pytest.approx(square[:, own, own.roll(4)].mean().item(), abs=1e-5)
    assert look["cosine"] == pytest.approx(1 - square.sum().item() / (2 * 3 * 8 * 7), abs=1e-5)
    square[:, own, own] = square[:, own, own.roll(4)] = 9
    nearest = square.sort(-1).values
    assert look["d_selected"] == pytest.approx(nearest[..., :2].mean().item(), abs=1e-5)  # a quarter of 6
    assert look["d_negative"] == pytest.approx(nearest[..., :6].mean().item(), abs=1e-5)


def test_a_run_that_fails_says_why(study):
    row = collapse._work(Run("ntxent-0.5", "plain", TRAIN + 1, "sgd", 0), study, float("inf"))
    assert "Error" in row["error"] and row["error"] in table([row])
    assert collapse._work(Run("ntxent-0.5", "plain", 4, "sgd", 0), study, 0.0) is None


def test_the_file_has_every_run(tmp_path):
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(4):
                Image.effect_noise((40, 36), 90).convert("RGB").save(tmp_path / split / label / f"{number}.png")
    output = tmp_path / "study.json"
    arguments = f"--data {tmp_path} --train 8 --test 4 --views 2 --device cpu --backend reference --steps 1"
    arguments += f" --only ^ntxent-0.5$ --heads plain --batches 4 --optimizers sgd adamw --output {output}"
    collapse.main(arguments.split())
    document = json.loads(output.read_text())
    assert [run["optimizer"] for run in document["runs"]] == ["sgd", "adamw"]
    assert document["settings"]["steps"] == 1 and document["environment"]["torch"] == torch.__version__
