"""The exact cases through the kernels, in float32."""

import pytest
import torch

from tests.helpers.golden import CASES, relative_error, run
from tests.helpers.kernels.compare import DEVICE

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_golden(path):
    found, case = run(path, torch.float32, "triton", DEVICE)
    for name, value in found.items():
        assert relative_error(value, case[name]) < 1e-5, name
