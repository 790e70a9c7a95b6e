"""Temperatures of anchors as settings of a run: what is kept of them, and what a resume goes on with."""

import pytest
import torch
import yaml

from amcl_fast.cli import main
from tests.helpers.command_line import AMCL, image_folder
from tests.helpers.resuming import change_everywhere, error, resume

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

TEMPERATURE = "--model.criterion.temperature"
PERPLEXITY = [f"{TEMPERATURE}=amcl_fast.PerplexityTemperature", f"{TEMPERATURE}.mean=[0.1, 0.2]"]
ROWS = {"score": "dot", "share": "row", "objective": "dro", "rho": 0.5, "init": 0.3}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start `run`, of one epoch, with these settings; returns its own."""
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "images", 8, 2)
    (tmp_path / "amcl.yaml").write_text(
        f"{AMCL}trainer: {{max_epochs: 1, accelerator: cpu, log_every_n_steps: 1, enable_progress_bar: false}}\n"
    )

    def started(*settings):
        assert main(["pretrain", "--config", "amcl.yaml", "--data", "images", "--run_dir", "run", *settings]) == 0
        return kept(tmp_path / "run")

    return started


def kept(run):
    """Settings of the model."""
    return yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]


def last(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_one_of_a_given_perplexity(start, tmp_path, capsys):
    given = start(*PERPLEXITY)["criterion"]["init_args"]["temperature"]
    assert given["class_path"] == "amcl_fast.PerplexityTemperature"
    assert given["init_args"] == {"mean": [0.1, 0.2], "perplexity": 0.25, "tau_min": 0.01, "tau_max": 1.0}
    assert resume("--trainer.max_epochs", 2, f"{TEMPERATURE}.mean=0.2") == 2
    assert "temperature.init_args.mean from [0.1, 0.2] to 0.2" in error(capsys)
    assert resume("--trainer.max_epochs", 2) == 0
    assert kept(tmp_path / "run")["criterion"]["init_args"]["temperature"] == given
    assert not [name for name in last(tmp_path / "run")["state_dict"] if "temperature" in name]


def test_one_of_rows_with_a_rate_of_its_own(start, tmp_path):
    given = [f"{TEMPERATURE}.{name}={value}" for name, value in ROWS.items()]
    settings = start(*given, "--model.optimizer.temperature_lr=0.001")
    assert ROWS.items() <= settings["criterion"]["init_args"]["temperature"]["init_args"].items()
    assert resume("--trainer.max_epochs", 2) == 0
    state = last(tmp_path / "run")
    assert [group["initial_lr"] for group in state["optimizer_states"][0]["param_groups"]] == [0.06, 0.001]
    assert state["state_dict"]["criterion.temperature.phi.2.weight"].shape[0] == 1


def test_a_run_from_before_there_were_these_goes_on(start, tmp_path):
    start()

    def older(settings):
        model = settings["model"]["init_args"]
        temperature = model["criterion"]["init_args"]["temperature"]
        temperature["class_path"] = "amcl_fast.temperature.AdaptiveTemperature"
        for name in ("share", "objective", "rho", "init"):
            del temperature["init_args"][name]
        for name in ("temperature_lr", "temperature_weight_decay"):
            del model["optimizer"][name]

    change_everywhere(tmp_path / "run", older)
    assert resume("--trainer.max_epochs", 2) == 0
    assert kept(tmp_path / "run")["optimizer"]["temperature_lr"] is None
    assert len(last(tmp_path / "run")["optimizer_states"][0]["param_groups"]) == 1
