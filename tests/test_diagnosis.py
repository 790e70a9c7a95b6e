"""`diagnose` and the guard: what they call a fault, and what they do not."""

import pytest
import torch

from amcl_fast import (
    AdaptiveTemperature,
    BarlowTwinsLoss,
    MoCoLoss,
    PerplexityTemperature,
    SimCLRLoss,
    SimSiamLoss,
    diagnose,
)


def rows(spread, noise, n=32, heads=2, dim=16):
    """Two views (n, heads, dim) of rows around one direction: images differ by `spread`, their views by `noise`."""
    generator = torch.Generator().manual_seed(0)
    common = torch.nn.functional.normalize(torch.randn(dim, generator=generator), dim=0)
    images = spread * torch.randn(n, heads, dim, generator=generator)
    return [common + images + noise * torch.randn(n, heads, dim, generator=generator) for _ in range(2)]


def kinds(criterion):
    return [finding.kind for finding in diagnose(criterion)]


def test_nothing_is_wrong_before_the_first_call():
    assert diagnose(SimCLRLoss.recommended(16)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("spread", "noise", "expected"),
    [
        (1e-3, 1e-2, ["projections"]),  # equal but for what augmentations did
        (0.0, 0.0, ["projections"]),  # equal
        (1e-2, 1e-3, []),  # a narrow cone in which images are told apart
        (0.5, 1.0, []),  # not told apart, but not equal either: untrained
    ],
)
def test_projections_are_judged_by_closeness_and_by_their_positives(spread, noise, expected, dtype):
    criterion = SimCLRLoss(0.5, negatives="topk_softmax", top_k=7)
    criterion(*(z.to(dtype) for z in rows(spread, noise)))
    assert kinds(criterion) == expected
    queue = torch.nn.functional.normalize(torch.cat(rows(spread, noise)).permute(1, 2, 0).to(dtype), dim=1)
    moco = MoCoLoss(0.5)
    moco(*(z.to(dtype) for z in rows(spread, noise)), queue)
    assert kinds(moco) == expected or not spread


def test_the_finding_names_the_settings_and_the_way_out():
    criterion = SimCLRLoss(0.5, negatives="topk_softmax", top_k=7)
    criterion(*rows(1e-3, 1e-2))
    (finding,) = diagnose(criterion)
    text = str(finding)
    for part in (
        "projections have collapsed",
        "negatives='topk_softmax', top_k=7",
        "SimCLRLoss.recommended",
        "BatchNorm",
    ):
        assert part in text
    safe = SimCLRLoss.recommended(16)
    safe(*rows(1e-3, 1e-2))
    assert "recommended" not in str(diagnose(safe)[0]) and "learning rate" in str(diagnose(safe)[0])


@pytest.mark.parametrize("make", [SimCLRLoss, SimSiamLoss])
@pytest.mark.parametrize(("bias", "end"), [(5.0, "0.1 "), (0.0, None)])
def test_temperatures_at_a_bound(make, bias, end):
    temperature = AdaptiveTemperature(16, tau_min=0.1, tau_max=1.0)
    with torch.no_grad():
        temperature.phi[2].bias.fill_(bias)
    criterion = make(temperature)
    z1, z2 = rows(0.5, 0.1)
    criterion(*((z1, z2) if make is SimCLRLoss else (z1, z2, z2, z1)))
    if end is None:
        assert diagnose(criterion) == []
        return
    (finding,) = diagnose(criterion)
    assert finding.kind == "temperatures" and f"mean {end}" in finding.what
    assert "score='cosine'" in finding.remedy and f"{make.__name__}.recommended" in finding.remedy


ROW = {"tau_min": 0.1, "tau_max": 1.0, "share": "row"}


@pytest.mark.parametrize(
    ("temperature", "what", "remedy"),
    [
        (PerplexityTemperature(0.1, 0.5, 1.0, 2.0), "for a perplexity of 0.5 of their negatives", "Widen the temp"),
        (PerplexityTemperature(0.1, 0.01), "from 0.01 to 1,", "whose product with the number of negatives"),
        (AdaptiveTemperature(16, **ROW), "so they no longer adapt", "Set the temperature's objective='dro' with a rho"),
        (AdaptiveTemperature(16, **ROW, objective="dro", rho=0.5), "at a bound", "a perplexity of 0.61 of the neg"),
        (PerplexityTemperature(0.1, 0.5, 0.01, 1.0), None, None),
    ],
)
def test_temperatures_of_anchors_at_a_bound(temperature, what, remedy):
    if isinstance(temperature, AdaptiveTemperature):
        with torch.no_grad():
            temperature.phi[2].bias.fill_(9.0)
    criterion = SimCLRLoss(temperature, negatives="topk_softmax", top_k=7)
    criterion(*rows(0.5, 0.1))
    if what is None:
        assert diagnose(criterion) == []
        return
    (finding,) = diagnose(criterion)
    assert finding.kind == "temperatures" and what in finding.what and remedy in finding.remedy


def test_what_cannot_be_known_is_not_said():
    """Neither framework has negatives that rows could be compared with."""
    z1, z2 = rows(0.0, 0.0)
    simsiam, barlow = SimSiamLoss(), BarlowTwinsLoss()
    simsiam(z1, z2, z2, z1)
    barlow(z1, z2)
    assert diagnose(simsiam) == diagnose(barlow) == []
