"""What the losses and temperatures are made of: constructors, what they refuse, what they keep."""

import math

import pytest
import torch

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss, ops

Z = torch.randn(4, 2, 8)
QUEUE = torch.randn(2, 8, 5)
ALIGN = {"tau_min": 0.1, "tau_max": 1.0, "weight": 1.0, "beta": 0.0}
BAD_CALLS = {
    "not a tensor": (lambda: SimCLRLoss(0.1)(Z.numpy(), Z), TypeError, "z1"),
    "integers": (lambda: SimCLRLoss(0.1)(Z, Z.long()), TypeError, "z2"),
    "one dimension": (lambda: SimCLRLoss(0.1)(Z[0, 0], Z[0, 0]), ValueError, "z1"),
    "four dimensions": (lambda: SimSiamLoss()(Z[None], Z, Z, Z), ValueError, "p1"),
    "no channels": (lambda: SimCLRLoss(0.1)(Z[..., :0], Z[..., :0]), ValueError, "z1"),
    "unequal shapes": (lambda: SimSiamLoss()(Z, Z, Z[:2], Z), ValueError, "p2"),
    "unequal dtypes": (lambda: BarlowTwinsLoss()(Z, Z.double()), TypeError, "z2"),
    "unequal devices": (lambda: SimCLRLoss(0.1)(Z, Z.to("meta")), ValueError, "z2"),
    "empty batch": (lambda: SimCLRLoss(0.1)(Z[:0], Z[:0]), ValueError, "z1"),
    "one row": (lambda: SimCLRLoss(0.1)(Z[:1], Z[:1]), ValueError, "z1"),
    "one row, MoCo": (lambda: MoCoLoss(0.1)(Z[:1], Z[:1], QUEUE), ValueError, "q"),
    "one row, SimSiam": (lambda: SimSiamLoss()(Z[:1], Z[:1], Z[:1], Z[:1]), ValueError, "p1"),
    "one row, Barlow Twins": (lambda: BarlowTwinsLoss()(Z[:1], Z[:1]), ValueError, "z1"),
    "queue not a tensor": (lambda: MoCoLoss(0.1)(Z, Z, [1]), TypeError, "queue"),
    "queue of other heads": (lambda: MoCoLoss(0.1)(Z, Z, QUEUE[:1]), ValueError, "queue"),
    "empty queue": (lambda: MoCoLoss(0.1)(Z, Z, QUEUE[..., :0]), ValueError, "queue"),
    "queue of another dtype": (lambda: MoCoLoss(0.1)(Z, Z, QUEUE.double()), TypeError, "queue"),
    "temperature of another width": (lambda: SimCLRLoss(AdaptiveTemperature(9))(Z, Z), ValueError, "temperature.dim"),
    "temperature of another batch": (
        lambda: BarlowTwinsLoss(AdaptiveTemperature(9))(Z, Z),
        ValueError,
        "temperature.dim",
    ),
    "temperature elsewhere": (
        lambda: SimCLRLoss(AdaptiveTemperature(8).to("meta"))(Z, Z),
        ValueError,
        "temperature must be on the device of z1, cpu, got meta; move one",
    ),
    "zero temperature": (lambda: SimCLRLoss(0.0), ValueError, "temperature"),
    "NaN temperature": (lambda: SimSiamLoss(math.nan), ValueError, "temperature"),
    "text for temperature": (lambda: SimSiamLoss("1"), TypeError, "temperature"),
    "negative beta": (lambda: SimCLRLoss(0.1, beta=-1.0), ValueError, "beta"),
    "infinite beta": (lambda: SimSiamLoss(beta=math.inf), ValueError, "beta"),
    "negative lambd": (lambda: BarlowTwinsLoss(lambd=-1.0), ValueError, "lambd"),
    "zero top_k": (lambda: SimCLRLoss(0.1, top_k=0), ValueError, "top_k"),
    "fractional top_k": (lambda: SimCLRLoss(0.1, top_k=1.5), TypeError, "top_k"),
    "no top_k": (lambda: MoCoLoss(0.1, top_k=None), TypeError, "top_k"),
    "unknown negatives": (lambda: SimCLRLoss(0.1, negatives="hard"), ValueError, "negatives"),
    "positive in a mean": (
        lambda: SimCLRLoss(0.1, include_positive=True),
        ValueError,
        "include_positive must be False .*, got True; negatives='topk_softmax' or 'softmax' have one",
    ),
    "unknown backend": (lambda: SimCLRLoss(0.1, backend="cuda"), ValueError, "backend"),
    "a list of backends": (lambda: ops.align(Z, Z, *3 * [None], **ALIGN, backend=[]), ValueError, "backend"),
    "Triton in float64": (lambda: SimCLRLoss(0.1, backend="triton")(Z.double(), Z.double()), TypeError, "triton"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_arguments_are_named(case):
    call, error, name = BAD_CALLS[case]
    with pytest.raises(error, match=name):
        call()


@pytest.mark.parametrize(
    ("settings", "error", "name"),
    [
        ({"dim": 0}, ValueError, "dim"),
        ({"dim": 8.0}, TypeError, "dim"),
        ({"dim": 8, "hidden_dim": 0}, ValueError, "hidden_dim"),
        ({"dim": 8, "tau_min": 0.0}, ValueError, "tau_min"),
        ({"dim": 8, "tau_min": "0.1"}, TypeError, "tau_min must be a number, got '0.1'"),
        ({"dim": 8, "tau_max": True}, TypeError, "tau_max must be a number, got True"),
        ({"dim": 8, "scale": None}, TypeError, "scale must be a number, got None"),
        ({"dim": 8, "offset": None}, TypeError, "offset must be a number, got None"),
        (
            {"dim": 8, "tau_min": 2.0, "tau_max": 1.0},
            ValueError,
            "tau_min and tau_max must be .*, got tau_min=2.0, tau_m",
        ),
        ({"dim": 8, "tau_max": math.inf}, ValueError, "tau_max"),
        ({"dim": 8, "score": "euclidean"}, ValueError, "score"),
        ({"dim": 8, "scale": -1.0}, ValueError, "scale"),
    ],
)
def test_bad_temperatures_are_named(settings, error, name):
    with pytest.raises(error, match=name):
        AdaptiveTemperature(**settings)


def test_losses_pickle_and_load():
    """Loss modules hold only their temperature's parameters, and no statistics, in their state."""
    loss = SimCLRLoss(AdaptiveTemperature(8, 4, score="cosine"), top_k=3)
    loss(Z, Z + 1)
    other = SimCLRLoss(AdaptiveTemperature(8, 4, score="cosine"), top_k=3)
    other.load_state_dict(loss.state_dict())
    assert set(loss.state_dict()) == {f"temperature.{k}" for k in loss.temperature.state_dict()}
    assert torch.equal(loss(Z, Z + 1), other(Z, Z + 1))


CLASSES = [SimCLRLoss, MoCoLoss, SimSiamLoss, BarlowTwinsLoss]


@pytest.mark.parametrize("cls", CLASSES)
def test_released_is_what_the_golden_files_hold(cls):
    assert repr(cls.released(12)) == repr(cls(AdaptiveTemperature(12)))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("constructor", ["recommended", "released"])
def test_named_constructors_take_what_the_class_takes(cls, constructor):
    settings = {"backend": "reference"} | ({"gather": True} if cls in (SimCLRLoss, BarlowTwinsLoss) else {})
    loss = getattr(cls, constructor)(12, **settings)
    assert loss.adaptive.dim == 12 and {name: getattr(loss, name) for name in settings} == settings
    for bad, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="dim must be"):
            getattr(cls, constructor)(bad)


@pytest.mark.parametrize("cls", [SimCLRLoss, MoCoLoss])
def test_recommended_takes_all_negatives_and_the_positive(cls):
    loss = cls.recommended(12)
    assert (loss.negatives, loss.include_positive) == ("softmax", True)
    assert (loss.adaptive.score, loss.adaptive.tau_min, loss.adaptive.tau_max) == ("cosine", 0.1, 1.0)


def test_recommended_simclr_starts_away_from_both_ends_of_the_range():
    one = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    equal_rows = SimCLRLoss.recommended(12).adaptive(one, one).item()
    assert equal_rows == pytest.approx(0.1 + 0.9 / (1 + math.exp(4 * (1 - 0.5))))


@pytest.mark.parametrize("offset", [math.inf, math.nan])
def test_an_offset_that_is_no_number_is_named(offset):
    with pytest.raises(ValueError, match="offset must be finite"):
        AdaptiveTemperature(4, score="cosine", offset=offset)


@pytest.mark.parametrize("dim", [16, 2048])
def test_recommended_simsiam_has_its_best_temperature_inside_the_range(dim):
    """−s/(2τ) + β·Ω(τ) is least at τ = (2β − s)/(β·d), for every similarity from 0 to 1."""
    loss = SimSiamLoss.recommended(dim)
    for s in (0.0, 1.0):
        best = (2 * loss.beta - s) / (loss.beta * dim)
        assert loss.adaptive.tau_min < best < loss.adaptive.tau_max
