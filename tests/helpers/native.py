"""Cases of the operators, and the engine's results beside the reference's: rows, statistics and gradients."""

import torch
import torch.nn.functional as F

from amcl_fast import reference

DTYPES = {torch.float64: 1e-10, torch.float32: 2e-5}
FORMS = reference.NEGATIVES
# heads, anchors, candidates, width, width of φ, skipped columns, k: one of everything; ragged; more than one
# tile of columns and block of rows; k above the negatives; k = 1; constant temperature; MoCo-like.
SHAPES = [
    (1, 1, 1, 1, 1, 0, 1),
    (2, 7, 13, 5, 3, 2, 3),
    (3, 130, 257, 17, 33, 2, 100),
    (2, 33, 2500, 130, 128, 1, 100),
    (1, 700, 40, 9, 12, 3, 1),
    (3, 700, 90, 8, 8, 2, 20),
    (2, 30, 21, 8, 8, 2, 1000),
    (2, 40, 60, 16, 0, 2, 20),
    (2, 6, 5000, 32, 16, 0, 64),
]


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def contrast_case(shape, dtype=torch.float64, seed=0):
    """Arguments and settings of a call; settings lack `negatives`."""
    heads, anchors, candidates, width, phi_width, skipped, top_k = shape
    g = torch.Generator().manual_seed(seed)
    tensors = [F.normalize(normal(g, heads, n, width), dim=-1) for n in (anchors, candidates)]
    if phi_width:
        tensors += [0.5 * normal(g, heads, n, phi_width) for n in (anchors, candidates)]
        tensors += [torch.tensor(0.3, dtype=torch.float64)]
    else:
        tensors += [None, None, None]
    skip = None
    if skipped:
        skip = torch.stack([torch.randperm(candidates, generator=g)[:skipped] for _ in range(anchors)])
    tau_max = 1.5 if phi_width else 0.1
    settings = {"tau_min": 0.1, "tau_max": tau_max, "top_k": top_k, "beta": 0.01}
    return [None if t is None else t.to(dtype) for t in tensors] + [skip], settings


def evaluate(operator, tensors, settings, weights=None):
    """Rows, all statistics, and the gradients of Σ weights · rows by every floating tensor."""
    tensors = [t.detach().requires_grad_() if t is not None and t.is_floating_point() else t for t in tensors]
    rows, *stats = operator(*tensors, **settings)
    weights = torch.ones_like(rows) if weights is None else weights.to(rows.dtype)
    inputs = [t for t in tensors if t is not None and t.is_floating_point()]
    gradients = torch.autograd.grad((rows * weights).sum(), inputs)
    return rows.detach(), [s for part in stats for s in part.items()], gradients


def assert_same(found, expected, tolerance):
    rows, stats, gradients = found
    expected_rows, expected_stats, expected_gradients = expected
    for a, b in zip((rows, *gradients), (expected_rows, *expected_gradients), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert (a - b).norm() <= tolerance * b.norm()
    assert [name for name, _ in stats] == [name for name, _ in expected_stats]
    for (name, a), (_, b) in zip(stats, expected_stats, strict=True):
        assert a.shape == ()
        assert not a.requires_grad
        # The reference's own variance has this much rounding.
        torch.testing.assert_close(a, b, rtol=100 * tolerance, atol=1e-8 + tolerance, equal_nan=True, msg=name)


def random_like(shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def paired_case(operator, heads=2, n=7, width=5, phi_width=3, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    tensors = [normal(g, heads, n, width), normal(g, heads, n, width)]
    if phi_width:
        tensors += [
            0.5 * normal(g, heads, n, phi_width),
            0.5 * normal(g, heads, n, phi_width),
            torch.tensor(0.3).double(),
        ]
    else:
        tensors += [None, None, None]
    settings = {"tau_min": 0.1, "tau_max": 1.5 if phi_width else 0.1, "beta": 0.01}
    settings |= {"weight": 0.5} if operator == "align" else {"lambd": 5e-3}
    return [None if t is None else t.to(dtype) for t in tensors], settings
