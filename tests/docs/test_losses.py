"""What docs/losses.md shows runs, and many views are what their formula says."""

import re
from pathlib import Path

import torch

from tests.helpers import literal_views as literal


def run(section, **given):
    """What the program of a section leaves."""
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    text = re.split(r"\n###? ", page.split(f"{section}\n")[1])[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, given)
    return given


def test_one_temperature_that_learns():
    model = torch.nn.Linear(4, 8)
    shown = run("### One temperature that learns", torch=torch, model=model)
    shown["criterion"](*model(torch.randn(2, 6, 4))).backward()
    before = shown["criterion"].temperature.log_tau.clone()
    shown["optimizer"].step()
    assert shown["optimizer"].param_groups[1]["weight_decay"] == 0
    assert shown["criterion"].temperature.log_tau != before


def test_one_temperature_for_each_anchor():
    torch.manual_seed(0)
    shown = run("### One temperature for each anchor")
    for loss in (shown["criterion"], shown["of_heads"]):
        assert loss.last_stats["tau_positive_std"] > 1e-3 and loss.last_stats["tau_positive_at_bound"] < 0.5
    assert all(loss.isfinite() for loss in shown["losses"])
    x = torch.randn(4, 128)
    torch.testing.assert_close(shown["robust"].of_rows(x), torch.full((4,), 0.1))


def test_many_views():
    torch.manual_seed(0)
    shown = run("## More than two views")
    assert all(p.grad.any() for p in shown["encoder"].parameters())
    criterion, z = shown["criterion"].double(), shown["z"].detach().double()
    tau = literal.tau_of(criterion.temperature)
    settings = {"form": "softmax", "top_k": None, "beta": criterion.beta, "include_positive": True}
    expected = literal.over_pairs(lambda q, t: literal.simclr(q, t, tau, **settings), z, [0, 1])
    torch.testing.assert_close(shown["loss"].double(), expected, rtol=1e-5, atol=0)
