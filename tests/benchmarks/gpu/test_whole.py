"""Whole losses: what a graph or a precision must not do."""

import pytest
import torch

from benchmarks.gpu import device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def test_a_graph_with_other_bits_is_a_row_and_a_failure(pretend, call):
    pretend.setattr(device, "graphed", lambda module, inputs: OtherBits(module))
    code, sections, _, complaints = call("losses", "--only", "N = 256, InfoNCE, graphed")
    (row,) = sections["losses"]["rows"]
    assert code == 1 and row["same_bits"] is False and 0 < row["difference"] < 1e-6
    assert "a graph's bits are not eager's: relative difference" in complaints


class OtherBits(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs) * (1 + 2**-22)


def test_a_precision_that_leaks_is_told(pretend, call):
    def leaks(step):
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        return []

    before = torch.backends.cuda.matmul.fp32_precision
    pretend.setattr(device, "kernels", leaks)
    code, _, _, complaints = call("losses", "--only", "φ in tf32")
    assert code == 1 and "leaves torch.backends.cuda.matmul.fp32_precision at 'tf32', it was" in complaints
    assert torch.backends.cuda.matmul.fp32_precision == before
