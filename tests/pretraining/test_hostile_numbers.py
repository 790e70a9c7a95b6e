"""Every numeric setting with numbers that nobody means: refused in one line with its name, or taken at once."""

import functools
import re
import shlex
from typing import get_args

import pytest
from lightning.pytorch.cli import LightningArgumentParser

from amcl_fast.callbacks import Checkpoint, Guard, OnlineKNN, Report
from amcl_fast.cli import main
from amcl_fast.data import ContrastiveDataModule
from amcl_fast.losses import SimCLRLoss
from amcl_fast.models import BackboneConfig, MultiHeadProjector, ProjectorConfig, build_backbone
from amcl_fast.optim import OptimizerConfig, ScheduleConfig
from amcl_fast.pretraining.given_settings import Given
from amcl_fast.pretraining.known_settings import known
from amcl_fast.pretraining.lightning_cli import PretrainCLI
from amcl_fast.pretraining.refusals import _wrong_value, refuse_nothing
from amcl_fast.pretraining.trainer_settings import check_trainer, refuse_useless
from amcl_fast.pretraining.values import check_values
from amcl_fast.temperature import AdaptiveTemperature
from tests.helpers.command_line import AMCL

NEVER = (".nan", ".inf", "-.inf", "1e400", f"1{400 * '0'}", f"1{5000 * '0'}")
"""None of these is a value of any setting."""
SOMETIMES = ("-1", "0", "10000000000000000000", "1e-320", "1000000000000")
SETTINGS = f"{AMCL}trainer: {{max_epochs: 2, accelerator: cpu}}"
CHOSEN = {
    "model": "amcl_fast.methods.SimCLR",
    "model.criterion": "amcl_fast.SimCLRLoss",
    "model.criterion.temperature": "amcl_fast.AdaptiveTemperature",
}
BUILT = {
    "data": ContrastiveDataModule,
    "knn": OnlineKNN,
    "checkpoint": Checkpoint,
    "guard": Guard,
    "report": Report,
    "model.backbone": lambda **settings: build_backbone(BackboneConfig(**settings)),
    "model.projector": lambda **settings: MultiHeadProjector(8, ProjectorConfig(**settings)),
    "model.optimizer": OptimizerConfig,
    "model.schedule": ScheduleConfig,
    "model.criterion": lambda temperature=0.1, **settings: SimCLRLoss(temperature, **settings),
    "model.criterion.temperature": lambda dim=8, **settings: AdaptiveTemperature(dim, **settings),
}
"""What a group of settings is for, made with one of them."""


def is_numeric(hint):
    inside = [part for kind in (hint, *get_args(hint)) for part in (kind, *get_args(kind))]
    return int in inside or float in inside


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """The settings that there are, and those of a run."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "settings.yaml").write_text(SETTINGS)
    parsers = []

    class Parsing(PretrainCLI):
        def parse_arguments(self, parser, args):
            super().parse_arguments(parser, args)
            parsers.append(parser)

        def instantiate_classes(self):
            pass

    args = ["--config", str(folder / "settings.yaml"), "--data.root", "builtin"]
    cli = Parsing(args, folder / "run")
    tree = known(parsers[0], CHOSEN)
    return {name: setting for name, setting in tree.items() if is_numeric(setting.hint)}, cli.config


@functools.cache
def one_alone(hint):
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def take(setting, text, config):
    """What a run does with one setting before it builds and begins: nothing, or an error."""
    group, _, leaf = setting.name.rpartition(".")
    if why := _wrong_value(Given(f"--{setting.name}", setting.name, text, is_text=True), setting.hint):
        raise ValueError(why)
    value = one_alone(setting.hint).parse_args([f"--value={text}"]).value
    refuse_nothing(value, setting.name)
    if group not in BUILT:
        changed = config.clone()
        changed[setting.name] = value
        check_values(changed)
        refuse_useless(changed.trainer, None)
        check_trainer(changed.trainer)
    else:
        BUILT[group](**{leaf: value})


def test_every_number(read):
    settings, config = read
    assert len(settings) > 60 and {"trainer.max_epochs", "data.size", "model.optimizer.lr"} <= {*settings}
    unknown = {name.rpartition(".")[0] for name in settings} - {*BUILT} - {"", "trainer"}
    assert not unknown, f"groups that nothing builds here: {unknown}"
    wrong = []
    for setting in settings.values():
        leaf = setting.name.rpartition(".")[2]
        for text in (*NEVER, *SOMETIMES):
            shown = text if len(text) < 30 else f"{len(text)} digits"
            try:
                take(setting, text, config)
            except (ValueError, TypeError) as error:
                said = str(error)
                if "\n" in said or leaf not in said or len(said) > 300:
                    wrong.append(f"{setting.name} {shown}: {said[:300]}")
            else:
                if text in NEVER:
                    wrong.append(f"{setting.name} {shown}: taken")
    assert not wrong, "\n".join(wrong)


WIDEST = 2**31 - 1
TYPED = {
    f"--lr {10**400}": "lr must be a number, got 1000000.*…$",
    f"--trainer.num_nodes {10**400}": "trainer.num_nodes must be at most 9.2.* got a whole number of about 400 .*$",
    f"--devices {10**400}": "trainer.devices must be auto or a number of processes on the CPU, got 1000.*…$",
    "--trainer.max_time 999999999999:00:00:00": "trainer.max_time must be DD:HH:MM:SS or a group of .* got 9999",
    f"--model.projector.heads {WIDEST} --model.projector.hidden_dim {WIDEST}": (
        f"model.projector.heads must be such that there is memory for it, got projector.heads={WIDEST}, "
    ),
}


@pytest.mark.parametrize("typed", TYPED, ids=lambda typed: typed[:30])
def test_a_command_says_so_in_one_line_and_leaves_nothing(typed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    assert main(["pretrain", "--config", "settings.yaml", "--data", "builtin", *shlex.split(typed)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"error: (--)?{TYPED[typed]}", line), line
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]
