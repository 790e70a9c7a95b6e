"""Settings as users type them: what is wrong is one line before any work, and what is right has its effect."""

import math
import re
import shlex
import subprocess

import pytest
import yaml

from amcl_fast.capabilities import Status
from amcl_fast.cli import main
from amcl_fast.data.views import ViewGroup
from amcl_fast.methods import CAN
from amcl_fast.models import BackboneConfig, ProjectorConfig
from amcl_fast.models.decoder import DecoderConfig
from amcl_fast.ops.backends import TABLE
from amcl_fast.optim import OptimizerConfig
from amcl_fast.pretraining.command import SettingsError, settings_of
from amcl_fast.pretraining.given_settings import given_to_others
from amcl_fast.pretraining.lightning_cli import parsed
from amcl_fast.recipes import recipe_names
from amcl_fast.recipes.shown import written
from tests.helpers.command_line import AMCL, PRETRAIN, environment, image_folder

TRAINER = "trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}\n"
FILES = {
    "amcl.yaml": f"{AMCL}{TRAINER}",
    "own.yaml": "base: demo\ntrainer: {max_epochs: 2}\n",
    "key.yaml": "trainer: {max_epoch: 3}\n",
    "inside.yaml": "model:\n  init_args: {optimizer: {learning_rate: 3}}\n",
    "value.yaml": "model:\n  init_args: {optimizer: {lr: fast}}\n",
    "views.yaml": "data: {views: [{crop_scale: [0.2, 1.0]}, {blurr: 0.1}]}\n",
    "short.yaml": "lr: 3\n",
    "list.yaml": "- 1\n",
    "cut.yaml": "trainer: {max_epochs: [1\n",
    "base.yaml": "base: dmeo\n",
}

# What is typed behind `amcl-fast pretrain --config amcl.yaml --data images`, and what the line that it gets has.
WRONG = {
    # a name that nothing has
    "--trainer.max_epoch 3": "--trainer.max_epoch is no setting, got 3; close to it: --trainer.max_epochs or --epochs$",
    "--max_epochs 3": "--max_epochs is no setting, got 3; close to it: --trainer.max_epochs or --epochs$",
    "--data.batch-size 4": "--data.batch-size is no setting, .* close to it: --data.batch_size or --batch-size$",
    "--trainer.max-epochs=3": "--trainer.max-epochs is no setting, got 3; close to it: --trainer.max_epochs",
    "--learning_rate 1": "--learning_rate is no setting, got 1; close to it: --model.optimizer.lr or --lr$",
    "--weight_decay 1": "close to it: --model.optimizer.weight_decay$",
    "--optimizer.name sgd": "close to it: --model.optimizer.name$",
    "--model.scheduler.warmup_epochs 1": "close to it: --model.schedule.warmup_epochs$",
    "--model.temperature.tau_min 0.1": "close to it: --model.criterion.temperature.tau_min$",
    "--model.tau_min 0.1": "close to it: --model.criterion.temperature.tau_min$",
    "--data.workers 4": "close to it: --data.num_threads$",
    "--data-root images": "close to it: --data$",
    "--model.projector.foo 3": "is no setting, got 3; --model.projector.help shows what there is$",
    "--data.seed 3": "--data.seed must be given as seed_everything",
    # an abbreviation, at every depth
    "--model.optimizer.weight 4": "is no setting, got 4; close to it: --model.optimizer.weight_decay",
    "--model.criterion.temperature.tau_mi 1": "close to it: --model.criterion.temperature.tau_min",
    "--check 1": "--check is no setting",
    # another type, or none of the values
    "--model.optimizer.name adam": "--model.optimizer.name must be one of sgd, lars, adamw, lamb, got adam$",
    "--epochs two": "--epochs must be a whole number or null, got two$",
    "--trainer.max_epochs 1.5": "--trainer.max_epochs must be a whole number or null, got 1.5$",
    "--trainer.precision foo": "--trainer.precision must be one of 64, 32, .*bf16-mixed.*, null, got foo$",
    "--trainer.callbacks Foo": "--trainer.callbacks must be a list of Callback, a Callback or null, got Foo$",
    "--trainer.callbacks+=EarlyStopping": "--trainer.callbacks.monitor must be given with --trainer.callbacks EarlyS",
    "--trainer.logger CSVLogger": "--trainer.logger.save_dir must be given with --trainer.logger CSVLogger, got none$",
    "--trainer.logger CSVLogger --trainer.logger.save_dir x --foo 3": "--foo is no setting, got 3",
    "--trainer 3": "--trainer must be settings by name, as --trainer.devices; --trainer.help shows them, got 3$",
    "--knn false": "--knn must be settings by name, as --knn.every_n_epochs; .*got false$",
    "--data.views two": "--data.views must be a list of groups of settings or a whole number, got two$",
    "--data.views '[{crop: 2}, {}]'": r"--data.views\[0\].crop is no setting, got 2; close to it: crop_",
    "--data.views '[{count: 2.5}]'": r"--data.views\[0\].count must be a whole number, got 2.5$",
    "--data.mean 0.5": "--data.mean must be a list of 3 numbers, got 0.5$",
    "--batch-size ''": "--batch-size must be a whole number, got ''$",
    "--lr null": "--lr must be a number, got null$",
    "--lr nan": "--lr must be a number, got nan$",
    "--lr .nan": "model.optimizer.lr must be a number, got nan$",
    "--lr '[1, 2]'": r"--lr must be a number, got \[1, 2\]$",
    "--data.crop_pct .nan": "data.crop_pct must be a number, got nan$",
    "--seed 1.5": "--seed must be a whole number, got 1.5$",
    "--checkpoint.every_n_minutes often": "--checkpoint.every_n_minutes must be a number, got often$",
    "--guard.window []": r"--guard.window must be a whole number, got \[\]$",
    "--report.pairs many": "--report.pairs must be a whole number, got many$",
    "--model.backbone null": "model.backbone must be settings by name, got null$",
    "--checkpoint.keep_best true --knn.bank 0": "checkpoint.keep_best must be false where knn.bank is 0, got true$",
    "--model.backbone.arguments null": "--model.backbone.arguments must be a group of values by name, .*got null$",
    "--model foo": "--model must be .*SimCLR.* or package.module.Class, got foo$",
    "--model MoCo": "amcl.yaml: model.init_args.criterion.class_path must be MoCoLoss or .*, got amcl_fast.SimCLRLoss$",
    "--model.criterion Foo": "--model.criterion must be SimCLRLoss or package.module.Class, got Foo$",
    # a value out of range, or not beside the others
    "--lr -0.1": "model.optimizer.lr must be finite and not negative, got -0.1$",
    "--lr -1e-2": "model.optimizer.lr must be finite and not negative, got -0.01$",
    "--model.optimizer.bias_lr 0.1": "model.optimizer.bias_lr must be unset unless optimizer.decay_all is false or",
    "--model.optimizer.momentum 1": "model.optimizer.momentum must be at least 0 and below 1, got 1.0$",
    "--model.schedule.warmup_epochs 15": "model.schedule.warmup_epochs must be .* than trainer.max_epochs, 1, got 15",
    "--model.projector.dim 64": "model.criterion.temperature.dim must be model.projector.dim, 64, .*got 8$",
    "--model.criterion.temperature.tau_min 2": "model.criterion.temperature: tau_min and tau_max must be .*tau_min=2.0",
    "--model.criterion.temperature 0.2 --model.optimizer.temperature_lr 0.1": "model.optimizer.temperature_lr must be "
    "unset with a constant temperature, which has no parameters, got 0.1$",
    "--model.criterion.temperature PerplexityTemperature --model.criterion.temperature.mean '[0.1, 0.2, 0.3]'": "mean "
    r"must be one number, or one for each of the 2 heads, got \[0.1, 0.2, 0.3\]$",
    "--model.criterion.temperature PerplexityTemperature --model.criterion.temperature.perplexity 2": "perplexity must "
    "be above 0 and below 1, a share of the negatives, got 2.0$",
    "--model.criterion.temperature '{class_path: PerplexityTemperature, init_args: {mean: high}}'": "temperature"
    ".init_args.mean must be a number or a list of numbers, got high$",
    "--model.criterion.temperature '{class_path: PerplexityTemperature, init_args: {means: 0.1}}'": "temperature"
    ".init_args.means is no setting, got 0.1; close to it: model.criterion.temperature.mean",
    # not dim, which amcl.yaml gave to the class that was there
    "--model.criterion.temperature PerplexityTemperature -c inside.yaml": "inside.yaml: .*learning_rate is no setting",
    "--model.criterion.temperature '{class_path: Perplexity}'": "--model.criterion.temperature.class_path must "
    "be a number, AdaptiveTemperature, .* got Perplexity$",
    "--model.criterion.temperature.share row": "score must be 'dot' with share='row', .*got 'cosine'$",
    "--model.criterion.temperature.share rows": "--model.criterion.temperature.share must be pair or row, got rows$",
    "--model.backbone.name resnet19": "model.backbone.name must be one of resnet18, .* got 'resnet19'$",
    "--model.backbone.width 12": "model.backbone.width must be a positive multiple of 8, got 12$",
    "--devices 3": "data.batch_size must divide by the 3 processes of trainer.devices, got 8; close to it: 9$",
    "--trainer.accelerator gpu": "trainer.accelerator must be cpu or auto where torch finds no such device, got gpu;",
    "--trainer.accelerator foo": "trainer.accelerator must be one of auto, gpu, cpu, .* got foo$",
    "--trainer.strategy foo": "trainer.strategy must be one of auto, ddp, .* got foo$",
    "--epochs -1": "trainer.max_steps must be given with trainer.max_epochs=-1, or the schedule has no end, got -1$",
    "--epochs null": "trainer.max_epochs must be given, or trainer.max_steps, or the schedule has no end, got null$",
    "--trainer.max_epochs null --trainer.max_time 00:01:00:00": "or trainer.max_steps, or the schedule has no end",
    "--devices -1": "trainer.devices must be auto or a number of processes on the CPU, got -1$",
    "--devices [0]": r"trainer.devices must be auto or a number of processes on the CPU, got \[0\]$",
    "--trainer.strategy ddp_fork": "trainer.strategy must be one of auto, ddp, .* got ddp_fork$",
    "--trainer.limit_train_batches 0": "trainer.limit_train_batches must be above 0, got 0$",
    "--trainer.limit_train_batches 1.5": "trainer.limit_train_batches must be .* up to 1.0, got 1.5$",
    "--trainer.log_every_n_steps 0": "trainer.log_every_n_steps must be at least 1, got 0$",
    "--trainer.max_time foo": "trainer.max_time must be DD:HH:MM:SS or .* got foo$",
    "--trainer.gradient_clip_algorithm sum": "trainer.gradient_clip_algorithm must be one of norm, value, got sum$",
    "--seed -1": "seed_everything must be from 0 to 4294967295, got -1$",
    "--data.size 0": "data.size must be at least 1, got 0$",
    "--data.views 1": "data.views must be at least 2 and at most 256, got 1$",
    "--data.views '[{count: 0}]'": "data.views: count must be from 1 to 256, got 0$",
    "--knn.k 0": "knn.k must be at least 1, got 0$",
    # twice, or loose
    "--lr 0.1 --model.optimizer.lr 0.2": "--lr must be given once, got it and --model.optimizer.lr, which is the same",
    "--trainer.max_epochs": "--trainer.max_epochs must be followed by its value, a whole number or null, got none$",
    "extra": "settings must be given as --NAME VALUE, got extra$",
    "-x 3": "settings must be given as --NAME VALUE, got -x$",
    # files
    "--config key.yaml": "key.yaml: trainer.max_epoch is no setting, got 3; close to it: trainer.max_epochs$",
    "-ckey.yaml": "key.yaml: trainer.max_epoch is no setting, got 3; close to it: trainer.max_epochs$",
    "-c inside.yaml": "inside.yaml: model.init_args.optimizer.learning_rate is no setting, .* model.optimizer.lr$",
    "-c=value.yaml": "value.yaml: model.init_args.optimizer.lr must be a number, got fast$",
    "-c views.yaml": r"views.yaml: data.views\[1\].blurr is no setting, got 0.1; close to it: blur",
    "-c short.yaml": "short.yaml: lr is no setting, got 3; close to it: model.optimizer.lr$",
    "-c list.yaml": "list.yaml must be a mapping of names to settings, got list$",
    "-c cut.yaml": "cut.yaml is no valid YAML",
    "-c nowhere.yaml": "--config must be a file of settings, or .* got nowhere.yaml, which does not exist$",
    "--config '{trainer: {max_epoch: 3}}'": "trainer.max_epoch is no setting, got 3; close to it: trainer.max_epochs$",
    "--config": "--config must be followed by a file of settings, got none$",
    "--recipe nowhere.yaml": "--recipe must be a file that is there, or the name of a recipe, got nowhere.yaml$",
    "--recipe base.yaml": "base.yaml: base must name recipes or parts of them, got 'dmeo'; close to it: demo",
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files, in which nobody looks for images."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def looked(*_, **__):
        pytest.fail("images were looked for")

    monkeypatch.setattr("amcl_fast.data.module.find_images", looked)
    return tmp_path


@pytest.mark.parametrize("typed", WRONG)
def test_what_is_wrong_is_one_line_before_any_work(typed, here, capsys):
    before = sorted(here.iterdir())
    assert main(["pretrain", "--config", "amcl.yaml", "--data", "images", *shlex.split(typed)]) == 2
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith("amcl-fast pretrain: error: ") and told.out == ""
    assert re.search(rf"error: .*?{WRONG[typed]}" if "$" in WRONG[typed] else WRONG[typed], line), line
    assert sorted(here.iterdir()) == before


def test_a_backend_that_is_not_there_is_found_before_any_work(here, monkeypatch, capsys):
    for name, status in (("triton", Status(False, "no GPU")), ("native", Status(True, "there"))):
        monkeypatch.setitem(TABLE, name, TABLE[name]._replace(status=lambda status=status: status))
    typed = ["pretrain", "--config", "amcl.yaml", "--data", "images", "--model.criterion.backend"]
    assert main([*typed, "triton"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    why = "for triton is not available: no GPU, got triton"
    assert line.endswith(f"model.criterion.backend must be auto or reference, {why}") and not (here / "runs").exists()
    assert settings_of("demo", ["--trainer.accelerator", "cpu", "--model.criterion.backend", "native"])
    monkeypatch.setattr("amcl_fast.pretraining.values.device_of", lambda trainer: "cuda")
    assert main([*typed, "native"]) == 2
    assert "auto or reference, for native takes no tensors on cuda, got native" in capsys.readouterr().err


def test_a_data_set_smaller_than_a_batch_is_told_by_the_setting(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "images", 2, 1)
    (tmp_path / "amcl.yaml").write_text(f"{AMCL}{TRAINER}")
    assert main(["pretrain", "--config", "amcl.yaml", "--data", "images"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and not (tmp_path / "runs").exists()
    assert told.err.endswith("error: data.batch_size must be at most 4, the training images, got 8\n")


@pytest.mark.slow
def test_a_process_of_its_own_says_the_same(tmp_path):
    command = [*PRETRAIN, "--recipe", "demo", "--trainer.max_epoch", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    (line,) = done.stderr.splitlines()
    assert line.endswith("close to it: --trainer.max_epochs or --epochs")


@pytest.mark.parametrize("dash", ["--batch-size", "--batch_size"])
def test_short_names_are_the_settings(dash):
    typed = f"{dash}=4 --epochs=3 --lr 0.5 --devices 2 --seed 7"
    settings = settings_of("demo", shlex.split(typed))
    assert (settings["data"]["batch_size"], settings["trainer"]["max_epochs"]) == (4, 3)
    assert settings["model"]["init_args"]["optimizer"]["lr"] == 0.5
    assert (settings["trainer"]["devices"], settings["seed_everything"]) == ("2", 7)


def test_settings_that_were_given_twice_under_one_name_are_the_last():
    assert settings_of("demo", ["--epochs", "3", "--epochs", "4"])["trainer"]["max_epochs"] == 4


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--t other.Perplexity", ("Perplexity", ["low", "high"])),
        ("--t.class_path Perplexity --t.low 0.5", ("Perplexity", ["high"])),
        ("--t.low 0.5 --t Perplexity", ("Perplexity", ["high"])),  # typed for it, if before it
        ("--t '{class_path: Perplexity, init_args: {high: 2}}'", ("Perplexity", ["low"])),
        ("--t '{class_path: Perplexity, init_args: 3}'", ("Perplexity", ["low", "high"])),
        ("--t one.Adaptive", ("Adaptive", [])),
        ("--t 0.07", ("07", ["low", "high"])),  # no class, whose settings these could be
        ("--t.class_path Perplexity --t.init_args '{low: 0.5}'", ("Perplexity", ["high"])),
        ("--config {t: {class_path: Perplexity, init_args: {low: 1}}}", ("Perplexity", ["high"])),
        ("--config {t: {init_args: {low: 1}, class_path: Perplexity}}", ("Perplexity", ["high"])),
        ("--config {t: {class_path: Perplexity, init_args: null}}", ("Perplexity", ["low", "high"])),
    ],
)
def test_what_files_gave_to_another_class_is_known(tmp_path, typed, expected):
    file = tmp_path / "own.yaml"
    file.write_text("t: {class_path: amcl_fast.Adaptive, init_args: {low: 0.1, high: 1.0}}\n")
    words = shlex.split(typed) if "--config" not in typed else typed.split(" ", 1)
    assert given_to_others(["--config", str(file), *words], "t") == expected


def test_a_class_may_be_given_with_what_it_stands_in():
    of_file = "{a: {t: {class_path: Adaptive, init_args: {low: 0.1, high: 1.0}}}}"
    typed = "{class_path: A, init_args: {t: {class_path: Perplexity, init_args: {low: 1}}}}"
    assert given_to_others(["--config", of_file, "--a", typed], "a.t") == ("Perplexity", ["high"])


def test_a_temperature_of_another_class_than_the_recipes_has_its_own_range():
    args = ["--model.criterion.temperature", "PerplexityTemperature", "--model.criterion.temperature.tau_max", "0.5"]
    criterion = settings_of("simclr-builtin-amcl", args)["model"]["init_args"]["criterion"]
    temperature = criterion["init_args"]["temperature"]
    assert temperature["class_path"] == "amcl_fast.PerplexityTemperature"
    assert temperature["init_args"] == {"mean": 0.07, "perplexity": 0.25, "tau_min": 0.01, "tau_max": 0.5}


def test_null_is_null_at_every_depth():
    temperature = "--model.criterion.temperature"
    typed = f"{temperature} LearnedTemperature --model.optimizer.bias_lr null --model.optimizer.layer_decay null"
    of_file = "{model: {init_args: {criterion: {init_args: {temperature: {class_path: amcl_fast.LearnedTemperature, "
    of_file += "init_args: {init: 0.2}}}}}}}"
    json = '{"class_path": "amcl_fast.AdaptiveTemperature", "init_args": {"dim": 128, "rho": null}}'
    for words in (
        [temperature, json],
        [*shlex.split(typed), temperature, json],
        # The file gives `init`, which this class has too, with null for its default.
        ["--config", of_file, temperature, "AdaptiveTemperature", f"{temperature}.dim", "128"],
        ["--config", of_file, temperature, json, f"{temperature}.rho", "null", f"{temperature}.init=null"],
    ):
        found = settings_of("simclr-builtin-best", words)["model"]["init_args"]["criterion"]["init_args"]
        of_class = found["temperature"]["init_args"]
        assert (of_class["rho"], of_class["init"], of_class["tau_min"]) == (None, None, 1e-5)


def test_a_study_takes_short_names_and_refuses_its_own():
    assert main(["study", "epochs", "--framework", "simclr", "--seed", "3"]) == 2
    with pytest.raises(SettingsError, match="--epochs must be a whole number or null, got many"):
        settings_of("demo", ["--epochs", "many"])


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda: DecoderConfig(8.0), TypeError, r"decoder\.width must be a whole number, got 8\.0"),
        (lambda: ViewGroup(count=2.5), TypeError, r"views\.count must be a whole number, got 2\.5"),
        (lambda: ViewGroup(crop_scale=0.5), TypeError, r"views\.crop_scale must be a list of 2 numbers or null, got 0"),
        (lambda: ProjectorConfig(heads=True), TypeError, r"projector\.heads must be a whole number, got True"),
        (lambda: OptimizerConfig(lr="0.1"), TypeError, r"optimizer\.lr must be a number, got '0\.1'"),
        (lambda: OptimizerConfig(lr=math.nan), ValueError, r"optimizer\.lr must be a number, got nan"),
        (lambda: BackboneConfig(stem="tiny"), ValueError, r"backbone\.stem must be standard or small, got 'tiny'"),
        (lambda: BackboneConfig(arguments=None), TypeError, r"backbone\.arguments must be a group of values by name"),
        (lambda: CAN(None, backbone=None, mask_ratio="0.5"), TypeError, "^mask_ratio must be a number, got '0.5'"),
    ],
)
def test_types_of_settings_in_python_are_told_by_name(made, error, message):
    with pytest.raises(error, match=message):
        made()


def test_python_takes_what_the_command_line_takes():
    assert OptimizerConfig(lr=1, betas=[0.9, 0.99]).betas == [0.9, 0.99]
    assert ViewGroup(crop_scale=None).crop_scale is None


def help_of(typed, capsys):
    """Name of each setting to the rest of its line."""
    assert main(["pretrain", *shlex.split(typed)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return {line.split("  ")[0]: line for line in told.out.splitlines()[2:] if line}


def test_the_help_of_a_group_has_a_line_a_setting(here, capsys):
    trainer = help_of("--trainer.help", capsys)
    assert len(trainer) < 45 and re.search(
        r"whole number or null +Stop training once", trainer["max_epochs (--epochs)"]
    )
    optimizer = help_of("--model.optimizer.help --recipe demo --lr 0.5", capsys)
    assert len(optimizer) == 13
    assert re.search(r"\) +0.5 +number +peak learning rate$", optimizer["lr (--lr)"])
    assert re.search(r"^name +sgd +sgd, lars, adamw, lamb ", optimizer["name"])
    data = help_of("--data.help --recipe own.yaml", capsys)
    assert re.search(r"\) +256 +whole number +images per optimiser step", data["batch_size (--batch-size)"])
    model = help_of("--model.help --recipe simclr-cifar10-amcl", capsys)
    assert "0.1" in model["criterion.temperature.tau_min"] and "AdaptiveTemperature" in model["criterion.temperature"]
    assert "mask_ratio" in help_of("--model.help CAN", capsys)
    assert any("--model.help NAME, of BarlowTwins" in line for line in help_of("--model.help", capsys).values())
    with pytest.raises(SystemExit) as end:  # of others' classes the parser tells
        main(["pretrain", "--trainer.logger.help", "CSVLogger"])
    assert end.value.code in (None, 0) and "--trainer.logger.save_dir" in capsys.readouterr().out
    assert main(["pretrain", "--model.help", "Foo"]) == 2
    assert "--model.help must be followed by nothing or by one of BarlowTwins" in capsys.readouterr().err
    assert main(["pretrain", "--modl.help"]) == 2
    assert "--modl.help must be of a group of settings, got modl; close to it: --model.help" in capsys.readouterr().err


def test_recipes_are_listed_and_shown(capsys, here):
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in recipe_names() if name.count("-") < 3)
    assert main(["recipes", "simclr-cifar10-amlc"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("amcl-fast recipes: error: ") and "close to it: simclr-cifar10-amcl" in line
    assert main(["recipes", "own.yaml"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"max_epochs: 2 +# own$", out, re.MULTILINE) and re.search(r"size: 32 +# demo$", out, re.MULTILINE)


@pytest.mark.parametrize("recipe", ["demo", "barlow-cifar10-amcl-vitxs4", "moco-imagenet100-baseline"])
def test_a_recipe_that_is_shown_is_the_one_that_runs(recipe, tmp_path):
    (tmp_path / "shown.yaml").write_text(written(recipe))
    of_recipe = settings_of(recipe, [])
    assert parsed(["--config", str(tmp_path / "shown.yaml")]) == {**of_recipe, "recipe": None, "base": None}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_file_is_a_recipe(tmp_path, monkeypatch, capsys):
    """Its run is named as it is, goes on and has its report; its base comes first."""
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "images", 8, 2)
    (tmp_path / "mine.yaml").write_text(f"{AMCL}{TRAINER}")
    assert main(["pretrain", "--recipe", "mine.yaml", "--data", "images"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("mine-") and yaml.safe_load((run / "config.yaml").read_text())["recipe"] == "mine"
    assert main(["pretrain", "--recipe", "mine.yaml", "--resume", "--epochs", "2"]) == 0
    assert f"run directory: runs/{run.name}" in capsys.readouterr().out
    assert main(["pretrain", "--recipe", str(run / "config.yaml"), "--data", "images", "--run-dir", "again"]) == 0
    (tmp_path / "built.yaml").write_text("base: demo\ndata: {batch_size: 64}\n")
    settings = settings_of("built.yaml", [])
    assert (settings["data"]["batch_size"], settings["data"]["root"], settings["recipe"]) == (64, "builtin", "built")
