import pytest
import torch
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of the interpreter")


@triton.jit
def _copy(source, target, read_at, write_at, count, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    tl.store(target + write_at + lanes, tl.load(source + read_at + lanes, lanes < count), lanes < count)


def copy(memcheck, read_at=0, write_at=0):
    source, target = torch.arange(100.0), torch.zeros(100)
    _copy[1,](source[10:30], target[40:60], read_at, write_at, 20, BLOCK=32)
    assert memcheck.accesses == 40
    assert torch.equal(target[40:60], source[10:30]) and target.count_nonzero() == 20


def test_a_right_kernel_runs(memcheck):
    copy(memcheck)


@pytest.mark.parametrize("places", [{"read_at": -1}, {"read_at": 1}, {"read_at": 10_000}, {"write_at": 1}])
def test_a_wrong_address_is_found(memcheck, places):
    """Inside of the storage but outside of the argument, too."""
    verb = next(iter(places)).removesuffix("_at")
    with pytest.raises(Exception, match=rf"a kernel {verb}s (1|20) of 20 elements outside its tensors"):
        copy(memcheck, **places)
