"""The exact cases: released formulas in float64, loss and every gradient."""

import pytest
import torch

from tests.helpers.golden import CASES, relative_error, run


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_golden(path, dtype, tolerance, backend):
    found, case = run(path, dtype, backend)
    for name, value in found.items():
        assert relative_error(value, case[name]) < tolerance, name


def test_every_case_is_here():
    assert len(CASES) == 9
