"""Files that go bad while a loader runs. `damage.py` has all kinds at all places; here each loader meets each kind."""

import json
import os
import re
import shutil
import signal
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def
from PIL import Image

from amcl_fast.cli import main
from amcl_fast.data import Augmentation, ContrastiveLoader, EvaluationLoader
from amcl_fast.data.decoding import trial
from amcl_fast.data.decoding.trial import Trial
from amcl_fast.data.graph import Output
from amcl_fast.data.loader.contrastive import SingleViewLoader
from amcl_fast.data.loader.evaluation import _Pass
from amcl_fast.data.loader.idle import Idle
from amcl_fast.data.scan.classes import scan_classes
from amcl_fast.data.scan.headers import BadImage, Look, NoImageLeftError, look
from amcl_fast.data.scan.images import Images
from amcl_fast.data.scan.limits import DEFAULT_LIMITS
from tests.helpers import damage, forks
from tests.helpers.command_line import NT_XENT, environment
from tests.helpers.damaged_files import JPEG, MAY_DECODE, contents, kinds
from tests.helpers.mutated_headers import bmp, mutated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("loader", damage.LOADERS)
def test_no_damage_ends_or_hangs_a_loader(tmp_path, loader):
    """In one process, three kinds in a batch of 64; a crash is at the three after the last ones that were told.

    Over the loaders, each at all places.
    """
    turn, places = damage.LOADERS.index(loader), list(damage.PLACES)
    cases = [(kind, places[(number + turn) % len(places)]) for number, kind in enumerate(kinds())]
    command = [sys.executable, "-m", "tests.helpers.damage", "walk", loader, tmp_path / "images"]
    done = forks.run([*command, *map("@".join, cases)], env=environment(tmp_path), timeout=240)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(case["kind"], case["place"]) for case in told] == cases, done.stderr[-3000:]
    assert done.returncode == 0, done.stderr[-3000:]
    wrong = [c for c in told if not c["outcome"].startswith("listed: ") and c["kind"] not in MAY_DECODE]
    assert not wrong


@pytest.mark.parametrize("loader", ["training", "evaluation"])
def test_a_decoder_that_fails_again_and_again_is_given_no_more_damaged_pixels(tmp_path, loader, monkeypatch, caplog):
    monkeypatch.setattr("amcl_fast.data.loader.checked._MOST_FAILURES", 3)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    files = []
    for number in range(48):
        files.append(tmp_path / f"{number:02}.png")
        Image.fromarray(np.roll(pixels, number, 0)).save(files[-1])
    damaged = files[3::5]
    for path in damaged:
        content = bytearray(path.read_bytes())
        middle = content.index(b"IDAT") + 600
        content[middle : middle + 8] = bytes(8)
        path.write_bytes(content)
    bad = []
    images = Images([str(path) for path in files], [0] * len(files), ["a"])
    output = Output(size=16, batch_size=2, num_threads=1, prefetch=1)
    with caplog.at_level("DEBUG", "amcl_fast.data.loader"):
        if loader == "training":
            made = ContrastiveLoader(images, [Augmentation()], output, on_bad_file=lambda path, _: bad.append(path))
            batches = [labels for _, labels in made]
        else:
            made = EvaluationLoader(images, output, on_bad_file=lambda path, _: bad.append(path))
            batches = [labels for _, labels in made]
    assert sorted(bad) == [str(path) for path in damaged]
    assert sum(map(len, batches)) == 48 - (len(damaged) if loader == "evaluation" else 0)
    failures = [record for record in caplog.records if record.message.startswith("DALI failed: ")]
    assert len(failures) == 3
    assert sum("from now on each image is decoded" in record.message for record in caplog.records) == 1


def judged(content):
    """What the look at an encoded image says; None if it is bad for certain."""
    with suppress(BadImage):
        return look(lambda at, count: content[at : at + count], len(content)).looks
    return None


def test_no_damage_ends_or_hangs_a_scan(tmp_path):
    ways = kinds()
    for place, folder in enumerate(("first", "middle", "last")):
        (tmp_path / folder).mkdir()
        for number in range(3):
            (tmp_path / folder / f"{number} good.jpg").write_bytes(JPEG)
        for kind, damaging in ways.items():
            path = tmp_path / folder / f"{place} {kind.replace('/', '-')}"
            path.write_bytes(JPEG)
            damaging(path)
    images = scan_classes(tmp_path)
    listed = dict(images.skipped)
    whole = {kind for kind, content in contents().items() if judged(content) is Look.WHOLE}
    assert 5 < len(whole) < 25
    for place, folder in enumerate(("first", "middle", "last")):
        for kind in ways:
            path = str(tmp_path / folder / f"{place} {kind.replace('/', '-')}")
            # Damage in the middle of a file is left to the run.
            unseen = kind in whole or kind in MAY_DECODE or kind in ("deleted", "folder", "link to its folder")
            assert unseen or path in listed, path
        assert all(str(tmp_path / folder / f"{number} good.jpg") in images.files for number in range(3))
    assert len(ways) > 100


def test_ten_truncated_files_are_listed_with_reasons_and_the_run_goes_on(make_images):
    images = make_images(256)
    listed = {}
    output = Output(size=8, batch_size=32)
    data = ContrastiveLoader(images, [Augmentation()] * 2, output, on_bad_file=listed.__setitem__)
    epochs = (batch for _ in range(3) for batch in data)
    next(epochs)
    sizes = [0, 1, 3, 20, 200, 400, 0, 1, 3, 20]
    for path, size in zip(images.files[10::20], sizes, strict=False):
        os.truncate(path, size)
    assert len(list(epochs)) == 3 * 8 - 1
    assert listed.keys() == set(images.files[10:210:20])
    assert listed[images.files[10]] == "found during the run: empty file"
    assert "no frame header" in listed[images.files[50]]


@pytest.mark.parametrize("loader", damage.LOADERS)
def test_the_loss_of_all_files_is_one_error(make_images, loader):
    images = make_images(256)
    output = Output(size=8, batch_size=16)
    if loader == "evaluation":
        data = EvaluationLoader(images, output)
    else:
        data = ContrastiveLoader(images, [Augmentation()] * (1 + (loader == "training")), output)
        data = data if loader == "training" else SingleViewLoader(data)
    next(iter(data))
    for path in images.files:
        os.unlink(path)
    error = f"129 of 256 files to train on cannot be .* any more, the last {images.files[0][:-9]}.*: no such file; "
    if loader == "evaluation":
        error = "no file of those to be measured can be read and decoded any more$"
    with pytest.raises(NoImageLeftError, match=f"^{error}"):
        [list(data) for _ in range(3)]


def test_many_bad_files_are_all_listed_but_not_all_told(make_images, caplog):
    images = make_images(256)
    for path in images.files[:150]:
        os.truncate(path, 5)
    listed = {}
    data = EvaluationLoader(images, Output(size=8, batch_size=16), on_bad_file=listed.__setitem__)
    labels = torch.cat([labels for _, labels in data]).tolist()
    assert labels == list(range(150, 256))
    assert len(listed) == 150
    named = [record.message for record in caplog.records[:-1]]
    assert named == [f"{path}: {listed[path]}" for path in images.files[:5]]
    assert caplog.records[-1].message == "further files that turn out to be bad are only listed"


def test_what_passes_the_look_is_parsed_by_dali():
    """Bytes at random in what comes before the pixels; DALI's peek is its decoder's parser, and raises properly."""
    draw = np.random.default_rng(0)
    accepted, seen = [], {Look.WHOLE: 0, Look.PARSED: 0, Look.UNKNOWN: 0, None: 0}
    for _ in range(6000):
        content = mutated(draw)
        verdict = judged(content)
        seen[verdict] += 1
        if verdict in (Look.WHOLE, Look.PARSED):
            accepted.append(np.frombuffer(content, np.uint8))
    assert min(seen.values()) > 50

    @pipeline_def(batch_size=len(accepted), num_threads=2, device_id=None, prefetch_queue_depth=1)
    def peek():
        return fn.peek_image_shape(fn.external_source(source=lambda _: accepted, batch=True))

    (shapes,) = peek().run()
    pixels = shapes.as_array()[:, :2].prod(-1)
    assert pixels.min() >= 1
    assert pixels.max() <= DEFAULT_LIMITS.pixels


def test_what_passes_the_look_ends_no_process_whose_decoder_meets_it_in_large_batches(tmp_path):
    command = [sys.executable, "-m", "tests.helpers.mutated_headers", "--processes", "6", "--batch", "128"]
    done = forks.run(command, env=environment(tmp_path), timeout=240)
    assert done.stdout.startswith("6 processes, 0 crashes, "), done.stderr[-3000:]


@pytest.mark.parametrize("compression", [1, 2, 3, 4, 9, 2**31])
def test_a_bmp_of_unknown_compression_is_none_that_dali_is_given(compression):
    """Its decoder ends the process at the pixels: it parses the header, so that nothing but this look helps."""
    content = bytearray(bmp(40, 30, 24, 0))
    assert judged(bytes(content)) is Look.WHOLE
    content[30:34] = compression.to_bytes(4, "little")
    assert judged(bytes(content)) is Look.UNKNOWN


@pytest.mark.skipif(not version("nvidia-dali-cuda130").startswith("2.4."), reason="of another DALI nothing is known")
def test_this_dali_needs_the_guard_and_the_script_would_tell_if_not():
    assert damage.decoder_needs_guard()
    assert not damage.decoder_needs_guard(bad=JPEG[:900], attempts=1)


def test_a_trial_tells_good_from_bad_and_from_what_ends_or_hangs_its_process(monkeypatch):
    tell = Trial()
    good, bad = (np.frombuffer(content, np.uint8) for content in (JPEG, JPEG[:200]))
    assert tell(good) is None
    assert tell(bad) == "it cannot be read and decoded"
    assert tell(good) is None
    send = trial.Worker.send

    def send_and_stop(worker, message, signum=signal.SIGSEGV):
        if message == good.tobytes():
            os.kill(worker._process.pid, signum)
        send(worker, message)

    monkeypatch.setattr(trial.Worker, "send", send_and_stop)
    assert tell(good) == "the process that decodes it does not live: it ended with SIGSEGV"
    monkeypatch.setattr(trial, "_DECODE_SECONDS", 0.5)
    monkeypatch.setattr(trial.Worker, "send", lambda worker, message: send_and_stop(worker, message, signal.SIGSTOP))
    assert tell(good) == "the process that decodes it does not live: it takes too long"
    monkeypatch.undo()
    assert tell(good) is None
    tell.close()


def test_a_state_of_the_version_with_dalis_own_reader_begins_the_order_anew(make_images, caplog):
    images = make_images(64)

    def loader():
        return ContrastiveLoader(images, [Augmentation()] * 2, Output(size=8, batch_size=8))

    state = loader().state_dict()
    old = {"position": 3, "yielded": 3, "settings": state["settings"], "files": state["files"]}
    old["shards"] = [{"shard": 0, "checkpoint": "c29tZXRoaW5n", "bad": {}}]
    data = loader()
    data.load_state_dict(old)
    assert "the files' order begins anew" in caplog.text
    assert len(list(data)) == 5
    assert len(list(data)) == 8


def test_a_run_that_loses_all_its_files_ends_in_one_line(make_folder, tmp_path, monkeypatch, capsys, caplog):
    root = make_folder(per_class=12)

    class Losing(ContrastiveLoader):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if number == 1:
                    shutil.rmtree(root)
                yield batch

    monkeypatch.setattr("amcl_fast.data.module.ContrastiveLoader", Losing)
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text(NT_XENT + "trainer: {max_epochs: 9, accelerator: cpu, log_every_n_steps: 1}")
    assert main(["pretrain", "--config", "settings.yaml", "--data", str(root), "--run_dir", "run"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    assert last.startswith("amcl-fast pretrain: error: 17 of 33 files to train on cannot be read and decoded any more")
    assert Path("run/skipped_files.txt").read_text().count(".png\tfound during the run: no such file\n") == 17
    named, others = caplog.messages[:5], caplog.messages[5:]
    assert all(line.endswith(".png: found during the run: no such file") for line in named)
    assert others == [
        "further files that turn out to be bad are only listed",
        "6 of 33 files to train on have turned out to be bad: see that they are still there",
        "17 files have turned out to be bad during the run: see run/skipped_files.txt",
    ]


def test_an_interrupt_does_not_part_images_and_labels(make_images, monkeypatch):
    """In a notebook: stop the cell, run it again with the same loader."""
    images = make_images(64)

    def loader():
        return ContrastiveLoader(images, [Augmentation()], Output(size=8, batch_size=8), seed=5)

    expected = [(view.clone(), labels) for (view,), labels in loader()]
    data = loader()
    found = [(view.clone(), labels) for (view,), labels in islice(iter(data), 3)]
    real = data._checked.take

    def interrupted(sources):
        monkeypatch.setattr(data._checked, "take", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(data._checked, "take", interrupted)
    with suppress(KeyboardInterrupt):
        for (view,), labels in data:
            found.append((view.clone(), labels))
    assert 3 <= len(found) < len(expected)
    found += [(view.clone(), labels) for (view,), labels in islice(iter(data), len(expected) - len(found))]
    for (view, labels), (other, other_labels) in zip(found, expected, strict=True):
        assert torch.equal(labels, other_labels) and torch.equal(view, other)


def test_an_evaluation_of_hardly_any_good_file_has_its_own_bytes(make_images):
    """Bytes that wait for the rest of their batch are not those of a later list."""
    images = make_images(96)
    passed = _Pass(images.files, Output(size=8, batch_size=8), Idle())
    for place in range(96):
        if place % 8 != 3:
            passed.bad[place] = "of before"
    (found,) = [[bytes(image) for image in passed._feed(0)]]
    places = passed._places[0]
    passed.close()
    assert found == [Path(images.files[place]).read_bytes() for place in places] and len(found) == 8


def test_erased_flash_is_no_image_and_takes_no_minutes():
    content = b"\xff\xd8\xff" + bytes([0xFF]) * 20_000_000
    started = time.monotonic()
    assert judged(content) is None
    assert time.monotonic() - started < 20


def test_a_full_gpu_says_nothing_of_an_image(monkeypatch):
    class Full:
        def __init__(self, module, arguments):
            self.answers = (
                [trial._DECODED, b"CUDA allocation failed"] if arguments[0] == "gpu" else [trial._DECODED] * 9
            )

        def send(self, message):
            pass

        def receive(self, seconds):
            return self.answers.pop(0)

        def close(self):
            pass

    monkeypatch.setattr(trial, "Worker", Full)
    assert Trial("gpu", 0)(np.frombuffer(JPEG, np.uint8)) is None


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--help"], 0, "decoder"),
        (["walk", "--help"], 0, "KIND@PLACE"),
        ([], 2, "required: mode"),
        (["walk", "all", "images"], 2, "invalid choice: 'all'"),
        (
            ["each", "probe", "images", "nothing@first"],
            2,
            r"KIND@PLACE must be one of the \d+ cases, got 'nothing@first'",
        ),
    ],
)
def test_its_command_tells_what_it_takes(arguments, code, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["damage", *arguments])
    with pytest.raises(SystemExit) as ended:
        damage.main()
    output = capsys.readouterr()
    assert ended.value.code == code and re.search(told, output.err if code else output.out)
