"""The command of the study: its file, and runs that fail."""

import json

import torch
from PIL import Image

from benchmarks.collapse import command
from benchmarks.collapse.command import table
from benchmarks.collapse.grid import Run


def test_a_run_that_fails_says_why(study):
    # The pool has 24 images.
    row = command._work(Run("ntxent-0.5", "plain", 25, "sgd", 0), study, float("inf"))
    assert "Error" in row["error"] and row["error"] in table([row])
    assert command._work(Run("ntxent-0.5", "plain", 4, "sgd", 0), study, 0.0) is None


def test_the_file_has_every_run(tmp_path):
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(4):
                Image.effect_noise((40, 36), 90).convert("RGB").save(tmp_path / split / label / f"{number}.png")
    output = tmp_path / "study.json"
    arguments = f"--data {tmp_path} --train 8 --test 4 --views 2 --device cpu --backend reference --steps 1"
    arguments += f" --only ^ntxent-0.5$ --heads plain --batches 4 --optimizers sgd adamw --output {output}"
    command.main(arguments.split())
    document = json.loads(output.read_text())
    assert [run["optimizer"] for run in document["runs"]] == ["sgd", "adamw"]
    assert document["settings"]["steps"] == 1 and document["environment"]["torch"] == torch.__version__
