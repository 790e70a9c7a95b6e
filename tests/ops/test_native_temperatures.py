"""A temperature per anchor in the CPU engine, and its calibration, against the reference and loops over numbers."""

import math

import pytest
import torch
import torch.nn.functional as F

from amcl_fast import capabilities, reference
from tests.helpers.contrast import pairs
from tests.helpers.native import DTYPES, FORMS, SHAPES, assert_same, contrast_case, evaluate, normal, random_like

if not capabilities.native_status().available:
    pytest.skip(f"native module: {capabilities.native_status().reason}", allow_module_level=True)

from amcl_fast.ops import native

RANGE = {"tau_min": 0.02, "tau_max": 2.0}
# One of everything; several blocks; several tiles; κ = 1; κ above the negatives.
SOME = [SHAPES[i] for i in (0, 2, 3, 4, 6)]


def case(shape, dtype=torch.float64):
    """Anchors, candidates, skip, τ from 0.05 to 1, an extra logit, and κ."""
    (anchors, candidates, *_, skip), settings = contrast_case((*shape[:4], 0, *shape[5:]), dtype)
    tau = (0.05 * 20 ** random_like(shape[:2], seed=3)).to(dtype)
    return anchors, candidates, skip, tau, (20 * random_like(shape[:2], seed=2)).to(dtype), settings["top_k"]


def per_anchor(operator, skip, chosen=None, **settings):
    """A contrast of anchors, candidates, τ and perhaps the extra logit."""
    settings = {"tau_min": 0.05, "tau_max": 0.9, "beta": 0.0, "chosen": chosen} | settings

    def call(anchors, candidates, tau, extra=None):
        return operator(anchors, candidates, None, None, None, skip, tau=tau, extra=extra, **settings)

    return call


def hardest(anchors, candidates, skip, form, top_k):
    """T by the engine, None where all negatives count."""
    chosen = native.calibrate(
        anchors, candidates, skip, **RANGE, negatives=form, top_k=top_k, perplexity=0.5
    )[1]  # fmt: skip
    assert (chosen is None) == (form == "softmax")
    return chosen


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=["f64", "f32"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SOME, ids=str)
def test_contrast_of_a_temperature_per_anchor(shape, form, dtype, tolerance, instruction_set):
    anchors, candidates, skip, tau, extra, top_k = case(shape, dtype)
    tensors = [anchors, candidates, tau] + ([] if form == "topk_mean" else [extra])
    # The gradients of equal weights are made forwards, those of others backwards.
    for weights, known in ((random_like(shape[:2]), False), (None, True)):
        chosen = hardest(anchors, candidates, skip, form, top_k) if known else None
        found, expected = (
            evaluate(per_anchor(contrast, skip, of, negatives=form, top_k=top_k), tensors, {}, weights)
            for contrast, of in ((native.contrast, chosen), (reference.contrast, None))
        )
        assert_same(found, expected, tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_contrast_pair_by_pair(form):
    """∂row/∂τ = −Σ p·s/τ² by differences of loops over numbers."""
    anchors, candidates, skip, tau, _, top_k = case((2, 5, 11, 4, 0, 2, 4))

    def row(head, anchor, tau):
        left = [j for j in range(11) if j not in skip[anchor].tolist()]
        s = sorted((float(anchors[head, anchor] @ candidates[head, j]) for j in left), reverse=True)
        s = s if form == "softmax" else s[:top_k]
        return sum(s) / tau / len(s) if form == "topk_mean" else math.log(sum(math.exp(x / tau) for x in s))

    call = per_anchor(native.contrast, skip, negatives=form, top_k=top_k)
    rows, _, (*_, by_tau) = evaluate(call, [anchors, candidates, tau], {})
    for place in ((0, 0), (1, 4), (1, 2)):
        t = tau[place].item()
        assert rows[place].item() == pytest.approx(row(*place, t), rel=1e-9)
        slope = (row(*place, t + 1e-6) - row(*place, t - 1e-6)) / 2e-6
        assert by_tau[place].item() == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form):
    anchors, candidates, skip, tau, extra, top_k = case((2, 4, 7, 3, 0, 2, 3))
    inputs = [anchors, candidates, tau] + ([] if form == "topk_mean" else [extra])

    def rows(anchors, candidates, *more):
        chosen = hardest(anchors, candidates, skip, form, top_k)
        return per_anchor(native.contrast, skip, chosen, negatives=form, top_k=top_k)(anchors, candidates, *more)[0]

    assert torch.autograd.gradcheck(rows, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_only_needed_gradients(form, needs):
    anchors, candidates, skip, tau, _, top_k = case((2, 30, 50, 8, 0, 2, 7))

    def gradients(operator):
        leaves = [t.detach().requires_grad_(i in needs) for i, t in enumerate((anchors, candidates, tau))]
        rows, _ = per_anchor(operator, skip, negatives=form, top_k=top_k)(*leaves)
        (rows * random_like((2, 30))).sum().backward()
        return [t.grad for t in leaves]

    for i, (a, b) in enumerate(zip(gradients(native.contrast), gradients(reference.contrast), strict=True)):
        assert (a is not None) == (b is not None) == (i in needs)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_known_negatives_are_not_looked_for():
    """Rows are those of the similarities that were given, and columns are where gradients go."""
    anchors, candidates, skip, tau, _, _ = case((1, 3, 9, 4, 0, 1, 2))
    s, columns = random_like((1, 3, 2)), torch.tensor([[[1, 2], [3, 4], [5, 5]]], dtype=torch.int32)
    chosen = reference.Chosen(s, columns)
    call = per_anchor(native.contrast, skip, chosen, negatives="topk_mean", top_k=2)
    rows, stats, (by_anchors, by_candidates, by_tau) = evaluate(call, [anchors, candidates, tau], {})
    torch.testing.assert_close(rows, s.mean(-1) / tau)
    assert dict(stats)["similarity"].item() == pytest.approx(s.mean().item())
    torch.testing.assert_close(by_tau, -s.mean(-1) / tau**2)
    torch.testing.assert_close(by_anchors[0, 0], (candidates[0, 1] + candidates[0, 2]) / 2 / tau[0, 0])
    torch.testing.assert_close(by_candidates[0, 5], anchors[0, 2] / tau[0, 2])
    assert not by_candidates[0, [0, 6, 7, 8]].any()
    call = per_anchor(native.contrast, None, reference.Chosen(s, columns + 4), negatives="topk_mean", top_k=2)
    with pytest.raises(ValueError, match="columns must be of candidates, got 9"):
        call(anchors, candidates, tau)


def test_known_negatives_of_a_learned_temperature():
    tensors, settings = contrast_case((2, 7, 13, 5, 3, 2, 3))
    settings["negatives"] = "topk_softmax"
    chosen = hardest(tensors[0], tensors[1], tensors[5], "topk_softmax", 3)
    found = evaluate(native.contrast, tensors, settings | {"chosen": chosen})
    assert_same(found, evaluate(reference.contrast, tensors, settings), 1e-10)


def solved(similarities, perplexity, tau_min, tau_max):
    """τ of one list of numbers, by halves."""
    target = math.log(max(1.0, perplexity * len(similarities)))
    low, high = math.log(tau_min), math.log(tau_max)
    for _ in range(60):
        tau = math.exp((low + high) / 2)
        weights = [math.exp((s - max(similarities)) / tau) for s in similarities]
        shares = [w / sum(weights) for w in weights]
        entropy = -sum(p * math.log(p) for p in shares if p > 0)
        low, high = (math.log(tau), high) if entropy < target else (low, math.log(tau))
    return math.exp((low + high) / 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("perplexity", [0.05, 0.3, 0.9])
def test_calibrate_row_by_row(form, perplexity):
    """κ · 0.05 is below one candidate, where no temperature is low enough."""
    anchors, candidates, skip, *_ = case((2, 5, 23, 6, 0, 2, 9))
    tau, chosen = native.calibrate(
        anchors, candidates, skip, **RANGE, negatives=form, top_k=9, perplexity=perplexity
    )  # fmt: skip
    for head in range(2):
        for anchor in range(5):
            left = [j for j in range(23) if j not in skip[anchor].tolist()]
            s = {j: float(anchors[head, anchor] @ candidates[head, j]) for j in left}
            kept = left if form == "softmax" else sorted(left, key=lambda j: -s[j])[:9]
            expected = solved([s[j] for j in kept], perplexity, **RANGE)
            assert tau[head, anchor].item() == pytest.approx(expected, rel=1e-9)
            if chosen is not None:
                assert sorted(chosen.columns[head, anchor].tolist()) == sorted(kept)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SOME[1:], ids=str)
@pytest.mark.parametrize("perplexity", [0.06, 0.5])
def test_calibrate(shape, form, perplexity, instruction_set):
    anchors, candidates, skip, *_, top_k = case(shape)
    settings = RANGE | {"negatives": form, "top_k": top_k, "perplexity": perplexity}
    tau, chosen = native.calibrate(anchors, candidates, skip, **settings)
    expected, of_reference = reference.calibrate(anchors, candidates, skip, **settings)
    torch.testing.assert_close(tau, expected, rtol=1e-9, atol=0)
    single, _ = native.calibrate(anchors.float(), candidates.float(), skip, **settings)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=0)
    if chosen is not None:
        assert chosen.columns.dtype == torch.int32
        order = chosen.similarities.sort(dim=-1, descending=True, stable=True).indices
        assert torch.equal(chosen.columns.gather(-1, order), of_reference.columns)
        torch.testing.assert_close(chosen.similarities.gather(-1, order), of_reference.similarities)


def of_row(similarities, dtype=torch.float64, perplexity=0.3, form="softmax", **settings):
    """τ of one row: with d = 1 and an anchor of 1, the similarities are what the test says."""
    row = torch.as_tensor(similarities, dtype=dtype)[None, :, None]
    settings = RANGE | {"negatives": form, "top_k": row.shape[1], "perplexity": perplexity} | settings
    return native.calibrate(torch.ones(1, 1, 1, dtype=dtype), row, None, **settings)[0].item()


@pytest.mark.parametrize("dtype", DTYPES, ids=["f64", "f32"])
@pytest.mark.parametrize("form", ["topk_mean", "softmax"])
def test_ends_of_the_range(form, dtype):
    low, high = (torch.tensor(RANGE[name], dtype=dtype).item() for name in ("tau_min", "tau_max"))
    ramp = torch.linspace(-1, 1, 50)
    assert of_row(50 * [0.25], dtype, form=form) == low  # all equal: any τ is too high
    assert of_row(20 * [0.25] + 30 * [-1.0], dtype, form=form) == low  # twenty share the top, more than 0.3 · 50
    assert of_row([0.5], dtype, form=form) == low
    assert of_row(ramp, dtype, perplexity=0.02, form=form) == low  # one candidate of fifty
    assert of_row(1000 * ramp, dtype, form=form) == high
    assert of_row(1e-3 * ramp, dtype, form=form) == low
    assert of_row(ramp, dtype, form=form, tau_min=0.5, tau_max=0.5) == 0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=["f64", "f32"])
@pytest.mark.parametrize(
    "row",
    [
        10 * [1.0] + 90 * [0.9],  # two values
        10 * [1.0] + 90 * [-1.0],
        [1.0] + 99 * [0.0],  # an outlier, then ties
        [1.0, *torch.linspace(0, 0.01, 99).tolist()],
        [x**9 for x in torch.linspace(0, 1, 100, dtype=torch.float64).tolist()],
        [-(x**9) for x in torch.linspace(0, 1, 100, dtype=torch.float64).tolist()],
        [10.0 ** (-k / 10) for k in range(100)],  # many scales
    ],
    ids=range(7),
)
@pytest.mark.parametrize("perplexity", [0.0101, 0.12, 0.5, 0.97])
@pytest.mark.filterwarnings("error")
def test_awkward_rows(row, perplexity, dtype):
    wide = {"tau_min": 1e-5, "tau_max": 100.0}
    row = torch.tensor(row, dtype=dtype).tolist()
    expected = solved(row, perplexity, **wide)
    assert of_row(row, dtype, perplexity, **wide) == pytest.approx(
        expected, rel=1e-9 if dtype == torch.float64 else 5e-5
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("position", "bad"), [(0, float("nan")), (1, float("nan")), (0, float("inf"))])
def test_what_is_not_finite_shows(form, position, bad):
    anchors, candidates, skip, *_ = case((1, 5, 40, 8, 0, 2, 3))
    (anchors, candidates)[position][0, 2, 1] = bad
    settings = RANGE | {"negatives": form, "top_k": 3}
    tau, chosen = native.calibrate(anchors, candidates, skip, **settings, perplexity=0.5)
    assert tau.isfinite().all()  # or it would spoil the mean over all anchors
    rows, stats = per_anchor(native.contrast, skip, chosen, **settings)(anchors, candidates, tau)
    assert not rows[0, 2].isfinite()
    assert not stats["similarity"].isfinite()


@pytest.mark.parametrize("form", FORMS)
def test_free_strides(form):
    g = torch.Generator().manual_seed(0)
    anchors = F.normalize(normal(g, 20, 2, 8), dim=-1).transpose(0, 1)
    queue = F.normalize(normal(g, 2, 8, 50), dim=1).mT
    skip = torch.randint(0, 50, (1, 20), generator=g).T
    settings = RANGE | {"negatives": form, "top_k": 7, "beta": 0.0}
    calibration = {"tau_min": 0.02, "tau_max": 2.0, "negatives": form, "top_k": 7, "perplexity": 0.4}
    tau, chosen = native.calibrate(anchors, queue, skip, **calibration)
    expected, _ = native.calibrate(anchors.contiguous(), queue.contiguous(), skip.contiguous(), **calibration)
    torch.testing.assert_close(tau, expected, rtol=1e-12, atol=0)
    strided = None
    if chosen is not None:
        strided = reference.Chosen(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in chosen))
    views = [anchors, queue, tau.T.contiguous().T]
    found = evaluate(per_anchor(native.contrast, skip, strided, **settings), views, {})
    copies = [t.contiguous() for t in views]
    assert_same(found, evaluate(per_anchor(reference.contrast, skip, **settings), copies, {}), 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_same_bits_for_any_number_of_threads(form):
    anchors, candidates, skip, _, _, top_k = case((2, 601, 2309, 40, 0, 2, 50), torch.float32)
    settings = RANGE | {"negatives": form, "top_k": top_k}
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            tau, chosen = native.calibrate(anchors, candidates, skip, **settings, perplexity=0.24)
            call = per_anchor(native.contrast, skip, chosen, **settings)
            rows, stats, gradients = evaluate(call, [anchors, candidates, tau], {}, random_like((2, 601)))
            results.append([tau, *(chosen or ()), rows, *(value for _, value in stats), *gradients])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_all_pairs_are_never_stored():
    """float32 similarities of 6000 by 6000 are 144 MB."""
    import resource

    z = F.normalize(torch.randn(1, 6000, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for form in FORMS[1:]:
        native.calibrate(z, z, pairs(6000), **RANGE, negatives=form, top_k=100, perplexity=0.3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024


def test_are_well_formed_operators():
    anchors, candidates, skip, tau, extra, _ = case((2, 8, 8, 6, 0, 2, 3))
    leaves = [t.requires_grad_() for t in (anchors, candidates, tau, extra)]
    chosen = native.calibrate(anchors, candidates, skip, **RANGE, negatives="topk_mean", top_k=3, perplexity=0.5)[1]
    no_phi, temperature = (None, None, None), (0.1, 1.4, 0.0)
    arguments = (*leaves[:2], *no_phi, skip, tau, *chosen, False, 3, *temperature, True)
    torch.library.opcheck(native._contrast_topk, arguments)
    needs = [True, True, False, False, False, True]
    torch.library.opcheck(native._contrast_softmax, (*leaves[:2], *no_phi, skip, extra, tau, *temperature, needs))
    for everything in (False, True):
        detached = (anchors.detach(), candidates.detach(), skip, everything, 6 if everything else 3, 0.1, 1.5, 0.5)
        torch.library.opcheck(native._calibrate, detached)


def test_inside_a_compiled_function():
    anchors, candidates, skip, *_ = case((2, 30, 50, 8, 0, 2, 7))
    settings = RANGE | {"negatives": "topk_softmax", "top_k": 7}

    def loss(anchors, candidates):
        found, chosen = native.calibrate(
            anchors.detach(), candidates.detach(), skip, **settings, perplexity=0.4
        )  # fmt: skip
        return per_anchor(native.contrast, skip, chosen, **settings)(anchors, candidates, found)[0].sum()

    leaves = [t.requires_grad_() for t in (anchors, candidates)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(*leaves), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
