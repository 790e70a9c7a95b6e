"""amcl_fast.runs.settings: limits that hold before anything is built, foreign code found before it is imported."""

import os
import subprocess
import sys
import time

import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.report import read_run
from amcl_fast.runs.checkpoint import load_checkpoint
from amcl_fast.runs.settings import (
    MAX_DEPTH,
    MAX_NODES,
    LimitError,
    check_plain,
    foreign_names,
    lacking,
    read_settings,
    refused_changes,
)

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
# Each level is an alias of the one before: 41 values of few, and as many levels.
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, MAX_DEPTH + 1))
REFUSED = {
    "bomb": (BOMB, "at most 20,000 values"),
    "bomb of merges": ("a: &a {x: 1}\n" + BOMB.replace("[", "{<<: [").replace("]", "]}"), "at most 20,000 values"),
    "deep": ("a: " + "[" * 200_000, "at most 40 levels"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(200)), "at most 40 levels"),
    "deep by aliases": (CHAIN, "at most 40 levels"),
    "inside itself": ("a: &a [*a]\n", "stands for nothing that is complete"),
    "many": ("a: [" + "1," * MAX_NODES + "]", "at most 20,000 values"),
    "large": ("a: " + "x" * (1 << 20), "at most 1,048,576 bytes"),
    "long": ("a: '" + "x" * 20_000 + "'", "at most 10,000 characters"),
}
DAMAGED = {
    "cut off": ("a: {b: [1, 2", "no valid YAML"),
    "an object": ("a: !!python/object/apply:os.getcwd []", "no valid YAML"),
    "a date that is none": ("a: 2026-99-99", "cannot be read"),
    "a list": ("[1, 2]", "must be a mapping"),
    "not UTF-8": (b"a: \xff", "not UTF-8"),
    "bytes": ("a: !!binary aGVsbG8=", "must be plain data"),
}


def run_directory(folder):
    (folder / "metrics.csv").write_text("step,loss\n0,1.5\n")
    return folder


def write(folder, content):
    path = folder / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("kind", [*REFUSED, *DAMAGED])
def test_what_is_no_file_of_settings_is_one_line(tmp_path, kind):
    content, message = {**REFUSED, **DAMAGED}[kind]
    run = run_directory(tmp_path)
    path = write(run, content)
    started = time.process_time()
    with pytest.raises(LimitError if kind in REFUSED else ValueError, match=message) as found:
        read_settings(path)
    assert time.process_time() - started < 5
    assert "\n" not in str(found.value) and str(path) in str(found.value)
    with pytest.raises(ValueError, match=message):
        read_run(run)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["FIFO", "folder"])
def test_what_is_no_regular_file_is_never_waited_for(tmp_path, make):
    make(tmp_path / "config.yaml")
    with pytest.raises(LimitError, match=r"config\.yaml"):
        read_settings(tmp_path / "config.yaml")


def test_aliases_and_numbers_of_names_are_fine(tmp_path):
    text = "base: &b {lr: 0.1, 4: [1, null, true]}\nmore: {<<: *b, lr: 0.2}\nagain: [*b, *b]\n"
    path = write(tmp_path, text)
    assert read_settings(path) == yaml.safe_load(text)
    assert read_settings(write(tmp_path, "")) == {}


@pytest.mark.parametrize("name", ["settings", "hyper_parameters"])
def test_a_checkpoint_may_hold_no_more(tmp_path, name, capsys):
    wide: list = ["x"]
    for _ in range(30):
        wide = [wide] * 9
    path = tmp_path / "last.ckpt"
    for value, message in (({"recipe": wide}, "at most 20,000 values"), ({"data": torch.zeros(1)}, "plain data")):
        torch.save({"state_dict": {}, "global_step": 1, name: value}, path)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path)
        for command in ("evaluate", "export"):
            assert main([command, str(path)]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "last.ckpt" in line and message in line


def test_nested_beyond_recursion():
    deep: dict = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(LimitError, match="at most 40 levels"):
        check_plain(deep, "settings")
    while deep:  # or the interpreter recurses when it is freed
        deep = deep.popitem()[1]


def test_foreign_code_is_found_and_not_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "more.yaml").write_text("class_path: evil.Evil")
    settings = {
        "data": {"root": "my.images", "augmentation": "acde"},
        "model": {
            "class_path": "amcl_fast.methods.SimCLR",
            "init_args": {
                "backbone": {"name": "timm/resnet18.a1_in1k"},
                "criterion": {"class_path": "amcl_fast.SimCLRLoss", "init_args": {"temperature": "evil.Tau"}},
            },
        },
        "trainer": {
            "precision": "bf16-mixed",
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_end": "os.abort"}},
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"filename": "{epoch}"}},
                "torch.os.abort",
                "evil.Evil",
            ],
            "profiler": "more.yaml",
            "plugins": "https://example.org/plugin.yaml",
        },
        "recipe": "my.recipe",
    }
    assert foreign_names(settings) == {
        "model.init_args.criterion.init_args.temperature": "evil.Tau",
        "trainer.callbacks[0].init_args.on_fit_end": "os.abort",
        "trainer.callbacks[2]": "torch.os.abort",
        "trainer.callbacks[3]": "evil.Evil",
        "trainer.profiler": "more.yaml",
        "trainer.plugins": "https://example.org/plugin.yaml",
    }
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        "evil.Evil",
        " evil.Evil ",
        "{class_path: evil.Evil}",
        "[evil.Evil]",
        "- evil.Evil",
        "&a evil.Evil",
        "!!str evil.Evil",
        '"evil.Evil"',
        r'"evil\x2eEvil"',
        "evil.Evil # it",
        "class_path: evil.Evil",
        "class_path:\n  evil.Evil",
        "torch.nn.Identity: {class_path: torch.os.abort}",
    ],
)
def test_names_within_text_are_found(text):
    assert foreign_names({"trainer": {"callbacks": [{"init_args": text}]}}) == {"trainer.callbacks[0].init_args": text}


@pytest.mark.parametrize(
    "text", ["{epoch}-{val_loss:.2f}", "bf16-mixed", "a/b.c/d-1", "torch.nn.Identity", "[lightning.Trainer]", "1.5", ""]
)
def test_other_text_is_no_name(text):
    assert foreign_names({"a": text}) == {}


def test_changes_are_named_with_both_values():
    then = {"trainer": {"max_epochs": 1, "precision": None}, "data": {"root": "a", "size": 32, "mean": [0, 1]}}
    now = {"trainer": {"max_epochs": 2, "precision": "bf16"}, "data": {"root": "b", "size": 64, "mean": [0, 1]}}
    now |= {"knn": {"k": 3}, "seed": 1}
    assert refused_changes(then, now) == {
        "trainer.precision": "unset to bf16",
        "data.size": "32 to 64",
        "seed": "unset to 1",
    }
    assert "seed" not in refused_changes(then, now, added=False)


def test_of_long_values_the_part_that_differs_is_told():
    crop = {"crop_scale": [0.08, 1.0], "crop_ratio": [0.75, 4 / 3], "flip": 0.5, "jitter": 0.8}
    then, now = ({"data": {"views": [{**crop, "count": count, "size": None}] * 2}} for count in (3, 4))
    (told,) = refused_changes(then, now).values()
    before, after = told.split(" to ")
    assert "'count': 3" in before and "'count': 4" in after
    assert before[0] == after[0] == "…" and max(len(before), len(after)) <= 80
    assert refused_changes({"a": "b" * 90}, {"a": 1}) == {"a": f"{'b' * 77}… to 1"}


def test_what_is_lacking_is_named():
    then = {"trainer": {"max_time": None, "max_epochs": 1}, "data": {"size": 32}, "knn": {}}
    assert lacking(then, {"trainer": {"max_time": {"hours": 1}}, "data": {"size": 1}}) == ["trainer.max_epochs", "knn"]
    assert lacking(then, then) == []


@pytest.mark.slow
def test_checkpoints_are_read_without_pyyaml():
    code = "import sys; sys.modules['yaml'] = None; import amcl_fast.encoder, amcl_fast.runs.checkpoint"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
