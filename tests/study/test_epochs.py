"""`amcl-fast study epochs`: which trainings, what is refused, a study of forty images from end to end."""

import json
import re
import shutil
from itertools import pairwise

import pytest
import yaml

from amcl_fast.cli import main
from amcl_fast.runs.directory import RunDirectory
from amcl_fast.runs.lock import RunLock
from amcl_fast.runs.read import read_run
from amcl_fast.study import epochs, folder, training
from amcl_fast.study.epochs import Epochs
from tests.helpers.command_line import environment, image_folder
from tests.helpers.studies import Forked, Killed, finished, refusal, tiny

TINY = tiny(epochs=2)


def study(*arguments):
    return main(["study", "epochs", "--framework", "simclr", *map(str, arguments)])


def refused(capsys, *arguments):
    """The line in which a study is refused."""
    return refusal(capsys, study(*arguments))


def test_seeds_come_one_after_the_other(here, untrained, capsys):
    settings = ["--variants", "amcl", "baseline", "--seeds", "4", "2", "--trainer.max_epochs", "50"]
    assert study(*settings, "--data", "builtin") == 1
    assert [(arguments[2], arguments[4]) for arguments in untrained] == [
        ("simclr-builtin-amcl", "4"),
        ("simclr-builtin-baseline", "4"),
        ("simclr-builtin-amcl", "2"),
        ("simclr-builtin-baseline", "2"),
    ]
    refusing = "--trainer.callbacks+=amcl_fast.study.measured.Measured"
    knn, data, own = ["--knn.every_n_epochs", "2"], ["--data.root", "builtin"], ["--trainer.max_epochs", "50"]
    assert {tuple(arguments[7:]) for arguments in untrained} == {(refusing, *knn, *data, *own)}
    again = "amcl-fast study epochs --framework simclr --dataset builtin --backbones default --variants amcl baseline"
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(
        "amcl-fast study: 4 of 4 trainings failed, simclr-builtin-amcl, seed 4 and 3 more; try again: "
    )
    assert err.endswith(f"{again} --seeds 4 2 --data builtin --trainer.max_epochs 50")
    assert json.loads((here / "runs/epochs-simclr-builtin/study.json").read_text())["left"] == 4


def test_a_backbone_is_the_end_of_a_recipes_name():
    cells = Epochs("can", "cifar10", ("default", "vitxs4"), ("baseline", "amcl"), (0,)).cells
    assert list(cells) == [
        *("can-cifar10-baseline", "can-cifar10-amcl"),
        *("can-cifar10-baseline-vitxs4", "can-cifar10-amcl-vitxs4"),
    ]
    assert cells["can-cifar10-amcl-vitxs4"] == {"backbone": "vitxs4", "variant": "amcl"}


@pytest.mark.parametrize(
    ("settings", "every"),
    [([], 1), (["39"], 1), (["40"], 2), (["100"], 5), (["800"], 6), (["800", "--knn.every_n_epochs", "50"], 50)],
)
def test_accuracy_is_measured_often_enough(settings, every, here, untrained):
    """The recipe itself has 6 epochs, and measures after the last."""
    study("--seeds", "0", "--variants", "amcl", *(["--trainer.max_epochs"] if settings else []), *settings)
    (arguments,) = untrained
    told = [value for name, value in pairwise(arguments) if name == "--knn.every_n_epochs"]
    assert told[-1] == str(every)  # what is given last counts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0", "0"], "--seeds must be different ones, got 0 0"),
        (["--variants", "amcl", "bets"], "recipe must be the name of one, got 'simclr-builtin-bets'; close to it: .*"),
        (["--sedes", "3"], "--sedes is no setting, got 3; .*"),
        (["--recipe", "demo"], "--recipe must be left out of a study, which has trainings of its own"),
        (["--seed_everything=3"], "--seed_everything must be left out of a study.*"),
        (["--trainer.max_steps", "9"], "trainer.max_steps must be left out of a study of whole epochs, got 9"),
        (["--trainer.max_time", "00:01:00:00"], "trainer.max_time must be left out .*"),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs must be at least 1 in a study of epochs, got 0"),
        (["--knn.every_n_epochs", "0"], "knn.every_n_epochs must be at least 1 in a study of accuracies, got 0"),
        (["--seeds", "0", "-1"], "--seeds must be between 0 and 4294967295, got -1"),
        (
            ["--config", "{seed_everything: 3}"],
            "seed_everything must be left out of the --config of a study, which has --seeds, got 3",
        ),
        (["--knn.queries", "0"], "knn.queries must be at least 1 in a study of accuracies, got 0"),
    ],
)
def test_what_cannot_be_a_study_is_one_line_and_leaves_no_folder(arguments, message, here, untrained, capsys):
    assert re.fullmatch(message, refused(capsys, *arguments))
    assert not untrained and not list(here.iterdir())


def test_variants_that_end_after_other_epochs_are_refused(here, untrained, capsys, monkeypatch):
    real = epochs.settings_of

    def settings_of(recipe, settings):
        found = real(recipe, settings)
        found["trainer"]["max_epochs"] += recipe.endswith("-amcl")
        return found

    monkeypatch.setattr(epochs, "settings_of", settings_of)
    assert refused(capsys) == (
        "--trainer.max_epochs must be given, for the recipes differ in it: 6 of simclr-builtin-baseline and 7 of "
        "simclr-builtin-amcl"
    )


def test_a_launcher_is_refused(here, untrained, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refused(capsys).startswith("a study must be started once, without torchrun or srun: ")
    assert not list(here.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a study of two variants and two seeds of forty images, its results, and its arguments."""
    root = tmp_path_factory.mktemp("study")
    images = image_folder(root / "images", 8, 12)
    arguments = ["--seeds", "0", "1", "--data", images, *TINY]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment(root).items():
            patched.setenv(name, value)
        patched.setattr(training, "Popen", Forked)
        assert study(*arguments, "--output", root / "study") == 0
    return root / "study", json.loads((root / "study" / "study.json").read_text()), arguments


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    """The same in a folder that a test may change; what it trains are forks."""
    folder, _, arguments = trained
    shutil.copytree(folder, tmp_path / "study")
    for name, value in environment(folder.parent).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(training, "Popen", Forked)
    return tmp_path / "study", [*arguments, "--output", tmp_path / "study"]


def without_seconds(results):
    """Rows without what depends on clocks: `metrics` have images a second."""
    return [
        {
            **{name: value for name, value in row.items() if name not in ("seconds", "metrics")},
            "measures": {name: value for name, value in row["measures"].items() if name != "seconds"},
        }
        for row in results["trainings"]
    ]


@pytest.mark.slow
def test_a_study_from_end_to_end(trained):
    folder, results, _ = trained
    assert [(row["variant"], row["seed"]) for row in results["trainings"]] == [
        *(("baseline", 0), ("baseline", 1)),
        *(("amcl", 0), ("amcl", 1)),
    ]
    for row in results["trainings"]:
        assert row["epochs"] == [1, 2] and len(row["knn"]) == 2 and row["untrained"] is not None
        assert row["measured_images"] == {"bank": 16, "queries": 24} and row["versions"]["torch"]
        assert (folder / row["run"] / "report" / "index.html").is_file()
        assert row["measures"]["knn"] == row["knn"][-1]
    ends = {(row["variant"], row["seed"]): row["knn"][-1] for row in results["trainings"]}
    (above,) = results["differences"]
    assert above["points"] == [round(ends["amcl", seed] - ends["baseline", seed], 4) for seed in (0, 1)]
    assert results["left"] == 0 and results["machine"]["cores"] and results["environment"]["amcl_fast"]
    by_measure = {row["measure"]: row["points"] for row in results["measures"]["differences"]}
    assert len(by_measure) == 4 and by_measure["knn"] == above["points"]
    pictures = {path.name: path.read_bytes()[:4] for path in folder.glob("*.png")}
    assert pictures == dict.fromkeys(("epochs.png", "differences.png"), b"\x89PNG")
    text = (folder / "index.html").read_text()
    assert text.count("<img") == 2 and "Measured at the end" in text


@pytest.mark.slow
def test_a_training_that_was_killed_is_gone_on_with(copied, trained, monkeypatch, capfd):
    """The others go on without it, and it ends as if nothing had been."""
    folder, arguments = copied
    shutil.rmtree(folder / "simclr-builtin-amcl-0")
    monkeypatch.setattr(training, "Popen", Killed)
    assert study(*arguments) == 1
    assert "simclr-builtin-amcl, seed 0 was ended by SIGKILL" in capfd.readouterr().err
    assert json.loads((folder / "study.json").read_text())["left"] == 1
    monkeypatch.setattr(training, "Popen", Forked)
    assert study(*arguments) == 0
    assert without_seconds(json.loads((folder / "study.json").read_text())) == without_seconds(trained[1])
    steps, losses = read_run(folder / "simclr-builtin-amcl-0").series("loss")
    expected = read_run(trained[0] / "simclr-builtin-amcl-0").series("loss")[1]
    assert steps.tolist() == [0, 1, 2, 3] and losses.tolist() == expected.tolist()


@pytest.mark.slow
def test_a_study_that_has_ended_is_read(copied, trained, untrained):
    folder, arguments = copied
    (folder / "index.html").unlink()
    assert study(*arguments) == 0
    assert not untrained and (folder / "index.html").is_file()
    assert json.loads((folder / "study.json").read_text())["trainings"] == trained[1]["trainings"]


@pytest.mark.slow
def test_only_more_of_the_same_goes_on_in_a_folder(copied, untrained, capsys):
    folder, arguments = copied
    images, output = arguments[arguments.index("--data") + 1], ["--output", folder]
    line = refused(capsys, *arguments, "--trainer.max_epochs", "3")
    assert line == (
        f"{folder}/simclr-builtin-baseline-0 has other settings (trainer.max_epochs from 2 to 3), and a study compares "
        "what has the same: give those of before, or another --output"
    )
    assert "(data.root from " in refused(capsys, *arguments, "--data", "cifar10")
    line = refused(capsys, "--seeds", "0", "--data", images, *TINY, *output)
    assert f"{folder} holds the training simclr-builtin-amcl-1, which is none of these" in line
    assert "--seeds 0 1" in line  # as it was begun
    with RunLock() as lock:
        lock.acquire(folder)
        assert f"{folder} is in use" in refused(capsys, *arguments)
    assert not untrained
    assert study("--seeds", "2", "0", "1", "--data", images, *TINY, "--data.num_threads", "2", *output) == 1
    assert [arguments[4] for arguments in untrained] == ["2", "2"]


@pytest.mark.slow
def test_a_damaged_file_of_results_is_written_again_once_it_is_removed(copied, untrained, capsys):
    folder, arguments = copied
    results = folder / "study.json"
    before = json.loads(results.read_text())
    results.write_text("{")
    line = refused(capsys, *arguments)
    assert line.startswith(f"{results} is damaged: ") and line.endswith("; remove it, and it is written again")
    results.unlink()
    assert study(*arguments) == 0 and not untrained
    assert json.loads(results.read_text())["trainings"] == before["trainings"]
    results.unlink()
    line = refused(capsys, *arguments, "--seeds", "0")
    assert "which is none of these; it goes on with all that is there (as it was begun), or give" in line


@pytest.mark.parametrize("name", ["data.root", "data.held_out"])
def test_folders_of_images_may_be_moved_and_not_exchanged(name, here):
    begun = training.Training("demo", 1, here)
    RunDirectory(begun.run_dir).config.parent.mkdir(parents=True)
    group, setting = name.split(".")

    def told(then, now):
        RunDirectory(begun.run_dir).config.write_text(yaml.safe_dump({"seed_everything": 1, group: {setting: then}}))
        return folder.moved(begun, {group: {setting: now}})

    assert told("/a", "/a") == () and told("/a", "/b") == (f"--{name}", "/b")
    for then, now in (("/a", None), (None, "/a"), ("cifar10", "/a"), ("/a", "cifar10")):
        with pytest.raises(ValueError, match=rf"demo-1 has other settings \({name} from {then} to {now}\), and a"):
            told(then, now)


@pytest.mark.slow
def test_those_who_go_on_are_told_where_data_have_moved_and_whom_to_trust(copied, untrained):
    folder, arguments = copied
    facts = RunDirectory(folder / "simclr-builtin-amcl-1").facts
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "finished": False}))
    assert study(*arguments, "--data", "/elsewhere") == 1
    resumed = ["pretrain", "--resume", str(facts.parent)]
    assert study(*arguments, "--trust") == 1
    assert untrained == [[*resumed, "--data.root", "/elsewhere"], [*resumed, "--trust"]]


@pytest.mark.slow
def test_images_of_which_nothing_can_be_measured_are_refused_before_the_first_step(tmp_path, copied, capfd):
    flat = tmp_path / "flat"
    flat.mkdir()
    images = copied[1][copied[1].index("--data") + 1]
    for number, path in enumerate(images.rglob("*.jpg")):
        (flat / f"{number}.jpg").write_bytes(path.read_bytes())
    assert study("--seeds", "0", "--data", flat, *TINY, "--output", tmp_path / "flat-study") == 2
    first, second = capfd.readouterr().err.splitlines()[-2:]
    assert first.startswith("amcl-fast pretrain: error: data must be such that kNN can be measured, in a study of ")
    assert "the training of simclr-builtin-baseline, seed 0 was refused, as told above" in second
    assert not list((tmp_path / "flat-study").glob("simclr*"))


def test_a_folder_of_something_else_is_refused(here, untrained, capsys):
    (here / "other").mkdir()
    (here / "other" / "thesis.tex").touch()
    assert refused(capsys, "--output", "other/thesis.tex", "--variants", "amcl").startswith(
        "other/thesis.tex is no folder"
    )
    other = ["--output", "other", "--variants", "amcl"]
    assert refused(capsys, *other) == "other holds thesis.tex, which is no study's; give another --output"
    (here / "other" / "study.json").write_text("{}")
    assert refused(capsys, *other) == "other/study.json is damaged: it has no command; give another --output"
    (here / "other" / "study.json").write_text('{"study": "heads", "command": "amcl-fast study heads"}')
    assert "other holds a study of heads; it goes on with" in refused(capsys, *other)
    assert not untrained


def test_trainings_of_other_images_are_not_compared(here, untrained, capsys):
    """Those of a folder that has changed since."""
    folder = here / "study"
    for number, variant in enumerate(("baseline", "amcl")):
        run = finished(folder / f"simclr-builtin-{variant}-0", [30.0], training_images=16 + number)
        settings = [*epochs.MEASURED, "--trainer.max_epochs", "1", "--knn.every_n_epochs", "1"]
        found = epochs.settings_of(f"simclr-builtin-{variant}", settings)
        RunDirectory(run).config.write_text(yaml.safe_dump(found))
    (folder / "study.json").write_text('{"study": "epochs", "command": ""}')
    line = refused(capsys, "--output", "study", "--seeds", "0", "--trainer.max_epochs", "1")
    assert line.endswith("must have training_images as simclr-builtin-baseline-0 has, 16, got 17")
