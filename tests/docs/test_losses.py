"""What docs/losses.md shows of many views runs, and is what its formula says."""

import re
from pathlib import Path

import torch

from tests.helpers import literal_views as literal


def test_many_views():
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    section = page.split("## More than two views\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    torch.manual_seed(0)
    shown = {}
    exec(code, shown)
    assert all(p.grad.any() for p in shown["encoder"].parameters())
    criterion, z = shown["criterion"].double(), shown["z"].detach().double()
    tau = literal.tau_of(criterion.temperature)
    settings = {"form": "softmax", "top_k": None, "beta": criterion.beta, "include_positive": True}
    expected = literal.over_pairs(lambda q, t: literal.simclr(q, t, tau, **settings), z, [0, 1])
    torch.testing.assert_close(shown["loss"].double(), expected, rtol=1e-5, atol=0)
