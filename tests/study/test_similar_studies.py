"""`amcl-fast study augmentations` and `similarities`: which trainings, what is refused, each of forty images."""

import json
import re

import numpy as np
import pytest
import yaml

from amcl_fast.arguments import parser
from amcl_fast.cli import main
from amcl_fast.recipes import VARIANTS
from amcl_fast.runs.directory import RunDirectory
from amcl_fast.runs.snapshot import Snapshot
from amcl_fast.study import augmentations, looking, training
from amcl_fast.study.overlap import auc, counts, overlap
from amcl_fast.study.similarities import given_recipes
from tests.helpers.command_line import environment, image_folder
from tests.helpers.shots import run_directory, snapshot
from tests.helpers.studies import Forked, refusal, tiny

TINY = tiny("--knn.every_n_epochs", "0")


def study(*arguments):
    return main(["study", *map(str, arguments)])


def refused(capsys, *arguments):
    """The line in which a study is refused."""
    return refusal(capsys, study(*arguments))


def test_every_set_of_augmentations_is_trained_with_every_number_of_heads(here, untrained, capsys):
    recipe = ["--recipe", "simclr-builtin-amcl"]
    arguments = ["--augmentations", "a", "acd", "--heads", "1", "3", "--seeds", "4", "2"]
    assert study("augmentations", *recipe, *arguments, "--data", "builtin", "--report.pairs", "64") == 1
    begun = [dict(zip(of[1::2], of[2::2], strict=True)) for of in untrained]
    told = [(of["--data.augmentation"], of["--model.projector.heads"], of["--seed_everything"]) for of in begun]
    sets = [("a", "1"), ("a", "3"), ("acd", "1"), ("acd", "3")]
    assert told == [(*cell, seed) for seed in ("4", "2") for cell in sets]
    assert all(of["--recipe"] == recipe[1] and of["--data.root"] == "builtin" for of in begun)
    assert [of[-4:-2] for of in untrained] == [["--data.root", "builtin"]] * 8 and begun[0]["--report.pairs"] == "64"
    folders = [of["--run_dir"].rpartition("/")[2] for of in begun[:4]]
    assert folders == ["a-1-head-4", "a-3-heads-4", "acd-1-head-4", "acd-3-heads-4"]
    again = " ".join(["amcl-fast study augmentations", *recipe, *arguments, "--data builtin --report.pairs 64"])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"try again: {again}")
    assert json.loads((here / "runs/augmentations-simclr-builtin-amcl/study.json").read_text())["left"] == 8


def test_more_pairs_are_looked_at_than_in_a_run_by_itself(here, untrained):
    study("similarities", "--framework", "moco", "--seeds", "0")
    pairs = {of[of.index("--report.pairs") + 1] for of in untrained}
    assert pairs == {"2048"}
    assert [of[of.index("--recipe") + 1] for of in untrained] == list(given_recipes(None, "moco", "builtin"))
    assert {"baseline", "amcl"} <= {of[of.index("--recipe") + 1].rpartition("-")[2] for of in untrained}
    assert "moco-builtin-baseline-0" in str(untrained[0])


def test_a_recipe_may_be_a_file(here, untrained):
    (here / "folder").mkdir()
    parts = "[frameworks/simclr, datasets/builtin, variants/simclr-amcl]"
    (here / "folder" / "mine.yaml").write_text(f"# Mine.\nbase: {parts}")
    study("similarities", "--recipes", "simclr-builtin-amcl", "folder/mine.yaml", "--seeds", "0")
    assert [of[of.index("--run_dir") + 1].rpartition("/")[2] for of in untrained] == ["simclr-builtin-amcl-0", "mine-0"]
    assert untrained[1][untrained[1].index("--recipe") + 1] == "folder/mine.yaml"


OF_AUGMENTATIONS = ["augmentations", "--recipe", "simclr-builtin-amcl"]
ONE_CELL = [*OF_AUGMENTATIONS, "--augmentations", "ac", "--heads", "3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*OF_AUGMENTATIONS, "--augmentations", "ac", "ca"], "--augmentations must be different ones, got ac ac"),
        ([*OF_AUGMENTATIONS, "--augmentations", "ax"], "augmentation must be letters out of 'abcdes', .*got 'ax'"),
        ([*OF_AUGMENTATIONS, "--heads", "3", "3"], "--heads must be different ones, got 3 3"),
        ([*OF_AUGMENTATIONS, "--heads", "0"], "--heads must be at least 1, got 0"),
        ([*OF_AUGMENTATIONS, "--seeds", "1", "1"], "--seeds must be different ones, got 1 1"),
        ([*OF_AUGMENTATIONS, "--data.augmentation", "a"], "--data.augmentation must be left out of .*"),
        ([*OF_AUGMENTATIONS, "--model.projector.heads=2"], "--model.projector.heads must be left out of .*"),
        (
            [*ONE_CELL, "--config", "{data: {augmentation: e}}"],
            "--data.augmentation must be left out of the --config of a study that compares values of it",
        ),
        ([*ONE_CELL, "--data.views", "[{count: 2}]"], "data.augmentation must be left out where data.views lists .*"),
        ([*ONE_CELL, "--trainer.max_time", "00:01:00:00"], "trainer.max_time must be left out of a study .*"),
        ([*ONE_CELL, "--trainer.fast_dev_run", "2"], "trainer.fast_dev_run must be left out of a study, .*, got 2"),
        (["augmentations", "--recipe", "simclr-best"], "recipe must be the name of one, got 'simclr-best'.*"),
        (["similarities", "--recipes", "demo", "demo"], "--recipes must be different ones, got demo demo"),
        (["similarities", "--recipes", "demo", "--seeds", "-1"], "--seeds must be between 0 and 4294967295, got -1"),
        (["similarities", "--recipes", "demo", "--seed_everything", "1"], "--seed_everything must be left out .*"),
        (
            ["similarities", "--recipes", "demo", "--config", "{seed_everything: 3}"],
            "seed_everything must be left out of the --config of a study, which has --seeds, got 3",
        ),
        (["similarities", "--framework", "byol"], "--framework and --dataset must be those of recipes, got byol .*"),
        (
            ["similarities", "--recipes", "demo", "--framework", "moco"],
            "--framework must be left out where --recipes says what to train, got demo",
        ),
        (["similarities"], "--framework or --recipes must be given, got neither"),
        (
            ["similarities", "--recipes", "simclr-builtin-amcl", "simclr-cifar10-amcl"],
            "--trainer.max_epochs must be given, for the recipes differ in it: 6 of simclr-builtin-amcl and 800 of .*",
        ),
    ],
)
def test_what_cannot_be_a_study_is_one_line_and_leaves_no_folder(arguments, message, here, untrained, capsys):
    assert re.fullmatch(message, refused(capsys, *arguments))
    assert not untrained and not list(here.iterdir())


def images(root, monkeypatch):
    for name, value in environment(root).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(training, "Popen", Forked)
    return image_folder(root / "images", 8, 12)


@pytest.mark.slow
def test_a_study_of_augmentations_from_end_to_end(tmp_path, monkeypatch, capfd):
    """What it says is what its runs' snapshots hold; it goes on with more."""
    data = images(tmp_path, monkeypatch)
    given = ["--augmentations", "abc", "--seeds", "0", "--data", data, *TINY, "--output", tmp_path / "study"]
    assert study(*OF_AUGMENTATIONS, "--heads", "1", *given) == 0
    before = json.loads((tmp_path / "study" / "study.json").read_text())
    assert study(*OF_AUGMENTATIONS, "--heads", "1", "2", *given) == 0
    found = json.loads((tmp_path / "study" / "study.json").read_text())
    assert found["trainings"][:1] == before["trainings"] and found["left"] == 0
    assert [(row["augmentation"], row["heads"]) for row in found["trainings"]] == [("abc", 1), ("abc", 2)]
    for row in found["trainings"]:
        run = RunDirectory(tmp_path / "study" / row["run"])
        settings = yaml.safe_load(run.config.read_text())
        assert settings["data"]["augmentation"] == row["augmentation"]
        shot = Snapshot.load(run.snapshot("after"))
        positive, negative = shot.positive_similarity, shot.random_similarity
        assert len(positive) == row["heads"] and positive.shape[1] == row["after"]["pairs"] == 16
        assert row["after"]["counts"]["positive"] == [counts(head) for head in positive]
        means = [np.asarray(of, np.float64).mean(0) for of in (positive, negative)]
        assert row["after"]["overlap"]["all"]["mean"] == pytest.approx(overlap(*map(counts, means)), abs=1e-4)
        assert row["after"]["auc"]["all"]["mean"] == pytest.approx(auc(*means), abs=1e-4)
        assert run.page.is_file() and row["tau_kind"] == "adaptive" and row["knn"] is None
    assert len(found["differences"]) == 1
    for name in ("histograms.png", "overlap.png"):
        assert (tmp_path / "study" / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "study" / "index.html").read_text().count("<img") == 2
    assert "about" in capfd.readouterr().out  # how long the rest takes
    assert study(*OF_AUGMENTATIONS, "--heads", "1", *given) == 2
    assert "holds the training abc-2-heads-0, which is none of these" in capfd.readouterr().err


@pytest.mark.slow
def test_a_study_of_similarities_of_trainings_that_have_ended(here, untrained, capsys):
    """Which are read: their snapshots are all that it needs."""
    folder = here / "study"
    for number, variant in enumerate(("baseline", "amcl")):
        run = folder / f"simclr-builtin-{variant}-0"
        run.mkdir(parents=True)
        tau = (0.1, 1.0) if variant == "amcl" else (0.5, 0.5)
        run_directory(run, before=snapshot(tau=tau), after=snapshot(19, tau=tau))
        settings = [*looking.PAIRS, "--trainer.max_epochs", "1"]
        whole = looking.settings_of(f"simclr-builtin-{variant}", settings)
        RunDirectory(run).config.write_text(yaml.safe_dump(whole))
        RunDirectory(run).facts.write_text(json.dumps({"finished": True, "training_images": 16 + number, "seconds": 1}))
    (folder / "study.json").write_text('{"study": "similarities", "command": ""}')
    recipes = ["--recipes", "simclr-builtin-baseline", "simclr-builtin-amcl"]
    arguments = ["similarities", *recipes, "--seeds", "0", "--trainer.max_epochs", "1", "--output", "study"]
    line = refused(capsys, *arguments)
    assert line.endswith("must have training_images as simclr-builtin-baseline-0 has, 16, got 17")
    RunDirectory(run).facts.write_text(json.dumps({"finished": True, "training_images": 16, "seconds": 1}))
    assert study(*arguments) == 0 and not untrained
    found = json.loads((folder / "study.json").read_text())
    assert [(row["recipe"], row["tau_kind"], row["knn"]) for row in found["trainings"]] == [
        ("simclr-builtin-baseline", "constant", 62.75),
        ("simclr-builtin-amcl", "adaptive", 62.75),
    ]
    assert (folder / "temperatures.png").is_file() and (folder / "histograms.png").is_file()


def test_the_defaults_are_those_of_the_figure():
    given = parser().parse_args(["study", *OF_AUGMENTATIONS])
    assert tuple(given.augmentations) == augmentations.SETS and given.heads == [1, 3]
    assert [len(letters) for letters in augmentations.SETS] == [1, 2, 3, 4, 5]


def test_a_variant_that_is_another_by_a_second_name_is_trained_once():
    """Of SimSiam and Barlow Twins `best` is the baseline."""
    for framework, variants in (("barlow", ["baseline", "released", "amcl"]), ("moco", list(VARIANTS))):
        assert given_recipes(None, framework, "cifar10") == tuple(f"{framework}-cifar10-{of}" for of in variants)
