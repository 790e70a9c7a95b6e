"""Every recipe builds, and trains for two steps at toy size."""

import functools
import itertools
import re
import warnings
from contextlib import nullcontext

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from torchvision.models import ResNet

from amcl_fast import AdaptiveTemperature
from amcl_fast.cli import main
from amcl_fast.methods import BarlowTwins
from amcl_fast.optim import lr_scale
from amcl_fast.pretraining.lightning_cli import PretrainCLI
from amcl_fast.recipes import BACKBONES, DATASETS, FOLDER, FRAMEWORKS, describe_recipes, recipe_files, recipe_names
from amcl_fast.recipes.shown import composed
from amcl_fast.report import Snapshot
from amcl_fast.runs.directory import RunDirectory
from amcl_fast.runs.resuming import Resumed
from tests.helpers.command_line import image_folder, saved_step
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.recipes import build

BATCH, WIDTH = 16, 12
VITS = [name for name in recipe_names() if name.rpartition("-")[2] in BACKBONES]
# Of the recipes of an encoder of their own, which differ from the others by few files, one for each.
# What is the baseline by another name, or another data set's at the size that all have here, is not trained again.
AGAIN = re.compile(
    "(simsiam|barlow)-.*-best|.*-(cifar100|cifar10mini|imagenet100)-best|(moco|simsiam|barlow)-cifar10mini-.*"
)
TRAINED = [name for name in recipe_names() if name not in VITS and not AGAIN.fullmatch(name)]
TRAINED += [f"{f}-{BACKBONES[b][-1]}-amcl-{b}" for f, b in zip(FRAMEWORKS, BACKBONES, strict=False)]


CONSTANT = ("baseline", "constant", "best")
"""What recipes with a constant temperature end with."""


def is_vit(name):
    return name in VITS or name.startswith("can")


def toy(name, folder):
    """The recipe with a tiny encoder, for images of 8 pixels, and tiny heads; everything else is its own."""
    encoder = ["name=resnet18", "stem=small", "width=8"]
    if is_vit(name):
        pytest.importorskip("timm")
        encoder = ["arguments={patch_size: 4, embed_dim: 12, depth: 1, num_heads: 3}"]
    settings = [f"--model.backbone.{setting}" for setting in encoder]
    settings += ["--data.size=8"] if is_vit(name) else []
    if name.startswith("can"):
        settings += ["--model.decoder.width=8", "--model.decoder.depth=1", "--model.decoder.heads=2"]
    settings.append("--model.compile=false")
    settings += [f"--model.projector.hidden_dim={WIDTH}", f"--model.projector.dim={WIDTH}"]
    settings += ["--model.schedule.warmup_epochs=0.5", f"--data.batch_size={BATCH}"]
    if not name.endswith(CONSTANT) and not name.startswith("barlow"):
        settings.append(f"--model.criterion.temperature.dim={WIDTH}")
    return build(name, folder, *settings)


@pytest.mark.parametrize("name", TRAINED)
def test_trains_two_steps(name, tmp_path):
    cli = toy(name, tmp_path)
    adaptive = isinstance(cli.model.criterion.temperature, AdaptiveTemperature)
    assert adaptive == (not name.endswith(CONSTANT))
    assert isinstance(cli.model.backbone, ResNet) != is_vit(name)
    before = [p.detach().clone() for p in cli.model.parameters()]
    data = FakeDataModule(steps=1, batch=BATCH)
    data.batch_size = BATCH
    # The recipe's precision, clipping and so on, without its callbacks and loggers.
    settings = cli.config["trainer"].as_dict() | {"max_epochs": 2, "accelerator": "cpu", "logger": False}
    trainer = L.Trainer(**settings | {"callbacks": None, "enable_checkpointing": False, "enable_progress_bar": False})
    trainer.fit(cli.model, datamodule=data)
    assert trainer.global_step == 2
    assert all(torch.isfinite(p).all() for p in cli.model.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(cli.model.parameters(), before, strict=True))


def settings_of(name):
    settings = {}
    for path in recipe_files(name):
        settings = merged(settings, read(path))
    return settings


@functools.cache
def read(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", recipe_names())
def test_phi_fits_what_it_reads(name):
    """Settings that fail at the first step of a real run only."""
    settings = settings_of(name)
    data, model = settings["data"], settings["model"]["init_args"]
    temperature = model["criterion"]["init_args"]["temperature"]
    if isinstance(temperature, dict):  # Barlow Twins' follows the batch
        assert temperature["init_args"].get("dim") == (None if name.startswith("barlow") else model["projector"]["dim"])
    if "queue_size" in model:
        assert model["queue_size"] >= 2 * data["batch_size"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), 19, 4)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_of_every_framework_ends_with_its_report(framework, images, tmp_path):
    """Command line, DALI and all callbacks. 38 images make two batches of 16; the loader drops the rest."""
    run = tmp_path / "run"
    settings = [f"--model.projector.hidden_dim={WIDTH}", f"--model.projector.dim={WIDTH}", "--trainer.max_epochs=2"]
    settings += [f"--data.batch_size={BATCH}", "--data.device=cpu", "--data.num_threads=1", "--knn.every_n_epochs=1"]
    if framework != "barlow":
        settings.append(f"--model.criterion.temperature.dim={WIDTH}")
    arguments = ["--recipe", f"{framework}-builtin-amcl", "--data", str(images), "--run_dir", str(run)]
    assert main(["pretrain", *arguments, *settings, "--trainer.log_every_n_steps=1"]) == 0
    assert saved_step(run) == 4
    assert (run / "report" / "index.html").is_file()
    for moment in ("before", "after"):
        shot = Snapshot.load(RunDirectory(run).snapshot(moment))
        assert np.isfinite(shot.positive_similarity).all() and np.isfinite(shot.random_tau).all()


def merged(first, second):
    """Nested mappings, the second over the first."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    # The arguments of timm's models are one setting, which is not merged.
    return first | {
        key: value if key == "arguments" else merged(first.get(key), value) for key, value in second.items()
    }


def test_every_file_is_part_of_a_recipe():
    used = {path for name in recipe_names() for path in recipe_files(name)}
    assert used == set(FOLDER.rglob("*.yaml"))


def test_a_recipe_without_a_backbone_is_put_together_of_three_parts():
    """CAN's, whose encoder is always a ViT, name one as their base."""
    for framework, (dataset, variants) in itertools.product(set(FRAMEWORKS) - {"can"}, DATASETS.items()):
        for variant in variants:
            name = f"{framework}-{dataset}-{variant}"
            parts = [f"frameworks/{framework}"]
            parts += [f"datasets/{base}" for base in BASES.get(dataset, ())]
            parts += [f"datasets/{dataset}", f"combinations/{framework}-{dataset}"]
            parts += [f"variants/{framework}-baseline"] * (variant == "best" and framework in ("simsiam", "barlow"))
            parts.append(f"variants/{framework}-{variant}")
            parts += ["variants/simclr-baseline"] * (name == "simclr-builtin-best")
            parts.append(f"combinations/{name}")
            assert recipe_files(name) == [path for part in parts if (path := FOLDER / f"{part}.yaml").is_file()]


BASES = dict.fromkeys(("builtin", "cifar10mini", "cifar100", "stl10"), ("cifar10",)) | {"imagenet100": ("imagenet1k",)}


@pytest.mark.parametrize("name", VITS)
def test_an_encoder_in_a_name_leaves_what_is_not_the_encoder_s(name):
    """Loss, images and evaluation are those of the recipe without it; nothing of a ResNet or of its SGD is left."""
    short, _, backbone = name.rpartition("-")
    settings, plain = settings_of(name), settings_of(short)
    model, theirs = settings["model"]["init_args"], plain["model"]["init_args"]
    part = read(FOLDER / f"backbones/{backbone}.yaml")["model"]["init_args"]["backbone"]
    assert {**part, **model["backbone"]} == model["backbone"]
    assert part.get("arguments", {}).items() <= model["backbone"].get("arguments", {}).items()
    assert model["backbone"]["name"].startswith("timm/vit_") and model["backbone"]["width"] == 64
    assert (model["optimizer"]["name"], model["optimizer"].get("bias_lr")) == ("adamw", None)
    assert model.get("predictor_lr") is None and model["projector"]["heads"] == theirs["projector"]["heads"]
    assert settings["data"]["size"] == plain["data"]["size"] and settings["knn"] == plain["knn"]
    losses = [init_args["criterion"]["init_args"] for init_args in (model, theirs)]
    kept = [{key: value for key, value in loss.items() if key != "temperature"} for loss in losses]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_parser_takes_the_settings_of_every_framework_and_encoder(framework, backbone, tmp_path):
    cli = toy(f"{framework}-{BACKBONES[backbone][0]}-baseline-{backbone}", tmp_path)
    assert cli.model.backbone.takes_size and cli.model.optimizer_config.name == "adamw"


def test_later_parts_override_earlier_ones(tmp_path):
    cli = build("simclr-imagenet100-baseline", tmp_path)
    assert cli.model.criterion.temperature == 0.2  # the loss's own is 0.5
    assert (cli.datamodule.batch_size, cli.datamodule.size, cli.trainer.max_epochs) == (128, 224, 400)


def test_imagenet_rates_follow_the_batch(tmp_path):
    cli = build("barlow-imagenet1k-baseline", tmp_path, "--model.compile=false", "--model.projector.hidden_dim=64")
    assert lr_scale(cli.model.optimizer_config, cli.datamodule.batch_size) == 8
    views = cli.datamodule.views
    assert [(view.blur, view.solarise, view.solarise_threshold) for view in views] == [(1.0, 0.0, 128), (0.1, 0.2, 128)]


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("simclr-cifar10-aml", "simclr-cifar10-amcl"),
        ("moco-imagenet1k-released", "moco-imagenet1k-baseline"),
        ("can-cifar10-released", "barlow-cifar10-released"),
        ("simclr-cifar10-amcl-vitts4", "simclr-cifar10-amcl-vitti4"),
        ("simclr-stl10-amcl-vitti4", "simclr-cifar10-amcl-vitti4"),
        ("resnet", r"demo, <framework>-<dataset>-<variant>\[-<backbone>\]"),
    ],
)
def test_unknown_names_get_help(name, close):
    with pytest.raises(ValueError, match=f"recipe must be the name of one, got '{name}'.*{close}"):
        recipe_files(name)


@pytest.mark.parametrize("form", ["--config {}", "--config={}", "-c {}", "-c{}"])
@pytest.mark.parametrize("base", ["[frameworks/simclr, datasets/cifar10, variants/simclr-amcl]", "simclr-cifar10-amcl"])
def test_a_file_of_one_s_own_builds_on_its_base(base, form, tmp_path, capsys):
    """The same settings as of the recipe, below the file's."""
    (tmp_path / "mine.yaml").write_text(f"base: {base}\ntrainer: {{max_epochs: 3}}\n")
    printed = []
    for given in (form.format(tmp_path / "mine.yaml"), "--recipe simclr-cifar10-amcl --trainer.max_epochs 3"):
        with pytest.raises(SystemExit):
            main(["pretrain", *given.split(), "--data.batch_size=64", "--print_config"])
        printed.append(yaml.safe_load(capsys.readouterr().out))
    mine, recipe = printed
    assert mine.pop("base") == yaml.safe_load(base) and recipe.pop("recipe") == "simclr-cifar10-amcl"
    mine.pop("recipe"), recipe.pop("base")
    assert mine == recipe and mine["data"]["batch_size"] == 64


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--config", "base: losses/simclr-amcl"],
            "base must name recipes or parts of them, got 'losses/simclr-amcl'; ",
        ),
        (["--recipe", "demo", "--base", "variants/simclr-amcl"], "--base must stand in a file given by --config"),
    ],
)
def test_a_base_that_would_do_nothing_is_refused(options, told, capsys):
    assert main(["pretrain", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"amcl-fast pretrain: error: {told}")


@pytest.mark.parametrize(
    ("base", "got"),
    [
        ("5", "'5'"),
        ("true", "'true'"),
        ("{demo: 1}", "{'demo': '1'}"),
        ("!!set {demo}", "{'demo': ''}"),
        ("[demo, [demo]]", "['demo', ['demo']]"),
        ("demu", "'demu'; close to it: demo"),
    ],
)
def test_a_base_of_another_kind_is_refused_with_its_file(base, got, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {base}\n")
    assert main(["pretrain", "--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"amcl-fast pretrain: error: {path}: base must name recipes or parts of them, got {got}")


@pytest.mark.parametrize(
    ("config", "code"), [("trainer: {max_time: 2020-13-45}", 0), ("base: null", 0), ("base: ~", 0), (3000 * "[", 2)]
)
def test_what_else_stands_in_a_file_is_the_parser_s(config, code, capsys):
    try:
        ended = main(["pretrain", "--config", config, "--print_config"])
    except SystemExit as end:
        ended = end.code
    assert ended == code and len(capsys.readouterr().err.splitlines()) == (code != 0)


def test_the_settings_of_a_run_need_no_base(tmp_path, capsys):
    """Its config.yaml has all of them, and may name a part as an earlier version did."""
    cli = build("cifar10-small-amcl", tmp_path)
    settings = yaml.safe_load(cli._yaml) | {"base": ["losses/simclr-amcl"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit):
        main(["pretrain", "--config", str(tmp_path / "config.yaml"), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"] == settings["model"]


def test_the_list_is_short_and_tells_all_names():
    text = describe_recipes()
    assert len(text.splitlines()) < 20
    for name in recipe_names():
        assert name in text or all(part in text for part in name.split("-"))


class OwnTemperature(AdaptiveTemperature):
    """As a user writes one."""

    def __init__(self, dim: int, hidden_dim: int = 8) -> None:
        super().__init__(dim, hidden_dim, 0.5, 1.5)


class OwnBarlowTwins(BarlowTwins):
    """As a user derives one."""


@pytest.mark.parametrize("method", [BarlowTwins, OwnBarlowTwins])
@pytest.mark.parametrize("temperature", [AdaptiveTemperature, OwnTemperature])
def test_phi_of_barlow_twins_follows_the_batch(method, temperature, tmp_path):
    own = tmp_path / "own.yaml"
    named = {"class_path": f"{temperature.__module__}.{temperature.__name__}", "init_args": {"hidden_dim": 8}}
    criterion = {"class_path": "amcl_fast.BarlowTwinsLoss", "init_args": {"temperature": named}}
    model = {"class_path": f"{method.__module__}.{method.__name__}", "init_args": {"criterion": criterion}}
    own.write_text(yaml.safe_dump({"model": model}))
    cli = build("barlow-builtin-baseline", tmp_path, "--config", str(own), "--data.batch_size=24")
    assert type(cli.model).__name__ == method.__name__
    assert type(cli.model.criterion.temperature).__name__ == temperature.__name__
    assert cli.model.criterion.temperature.dim == 24
    cli.model.check_batch(24)
    assert "dim: 24" in cli.parser.dump(cli.config)


def test_the_batch_alone_of_released_barlow_twins_may_change(tmp_path):
    cli = build("barlow-builtin-released", tmp_path, "--data.batch_size=64")
    assert (cli.model.criterion.temperature.dim, cli.datamodule.batch_size) == (64, 64)
    assert cli.model.hparams["criterion"]["init_args"]["temperature"]["init_args"]["dim"] == 64


@pytest.mark.slow
def test_a_width_of_phi_that_is_given_must_fit_the_batch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["--model.criterion.temperature.dim=128", "--data.batch_size", "64"]
    assert main(["pretrain", "--recipe", "barlow-builtin-released", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "temperature.dim must be data.batch_size = 64" in line and "got 128; leave temperature.dim out" in line
    assert not list(tmp_path.iterdir())


def test_other_frameworks_must_say_how_wide_phi_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    temperature = ["--model.criterion.temperature=AdaptiveTemperature", "--model.criterion.temperature.hidden_dim=8"]
    assert main(["pretrain", "--recipe", "simclr-builtin-baseline", *temperature]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("--model.criterion.temperature.dim must be given, got none")


@pytest.mark.parametrize("dim", ["128", "64"])
def test_a_resumed_run_keeps_the_width_of_phi(dim, tmp_path):
    """Runs of before wrote it; one whose width does not fit is refused as it was."""
    first = build("barlow-builtin-amcl", tmp_path)
    settings = yaml.safe_load(first.parser.dump(first.config, skip_unset=False))
    settings["model"]["init_args"]["criterion"]["init_args"]["temperature"]["init_args"]["dim"] = int(dim)
    cli = PretrainCLI([], tmp_path / "run", Resumed(None, 0, settings))
    assert cli.model.criterion.temperature.dim == int(dim)
    with nullcontext() if dim == "128" else pytest.raises(ValueError, match=r"got 64; leave temperature\.dim out"):
        cli.model.check_batch(cli.datamodule.batch_size)
    with pytest.raises(ValueError, match=r"data\.batch_size"):
        PretrainCLI(["--data.batch_size=32"], tmp_path / "run", Resumed(None, 0, settings))


def test_barlow_twins_of_constant_temperature_takes_any_batch(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli = build("barlow-builtin-baseline", tmp_path)
    assert isinstance(cli.model, BarlowTwins)
    cli.model.check_batch(7)


def test_where_a_setting_stands(tmp_path):
    """The criterion of another class forgets the settings of the one before."""
    (tmp_path / "own.yaml").write_text(
        "base: simclr-cifar10-amcl\nmodel: {init_args: {criterion: {class_path: my.Loss, init_args: {a: 1}}}}\n"
    )
    files, settings = composed(str(tmp_path / "own.yaml"))
    of_loss = {path[3:]: value for path, value in settings.items() if path[:3] == ("model", "init_args", "criterion")}
    own = tmp_path / "own.yaml"
    assert of_loss == {("class_path",): ("my.Loss", own), ("init_args", "a"): (1, own)}
    assert settings["data", "root"] == ("cifar10", FOLDER / "datasets/cifar10.yaml") and files[-1] == own
