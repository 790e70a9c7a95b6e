"""The key of a launch tells apart all that Triton compiles for."""

import random
import re
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import jit

from amcl_fast.kernels import launch
from amcl_fast.kernels.tile import Rows, Skip

ROOT = Path(__file__).parents[2]


def _kernel(table, skip, base, count, value, rest, WIDTH: tl.constexpr, FLAG: tl.constexpr):
    pass


# What tells Triton's specialisations apart, and what is equal in Python and not for Triton.
INTS = [0, 1, 2, 15, 16, 17, 48, -1, -16, 2**31 - 16, 2**31 - 1, 2**31, 2**32, -(2**31), -(2**31) - 1, 2**40]
SCALARS = [*INTS, True, False, 0.0, 1.0, 16.0, float("nan"), None]
STORAGE = torch.zeros(64, dtype=torch.float32)
TENSORS = [
    STORAGE.view(dtype)[start:] for dtype in (torch.float32, torch.int32, torch.bfloat16) for start in (0, 1, 4, 8)
]


def call(rng):
    """Arguments and constants of a random call."""
    table = Rows(rng.choice(TENSORS), *(rng.choice(INTS) for _ in range(5)))
    skip = Skip(rng.choice(TENSORS), rng.choice([tl.constexpr(0), tl.constexpr(1), 0, 1]))
    rest = rng.choice([rng.choice(SCALARS), (rng.choice(SCALARS), rng.choice(TENSORS)), rng.choice(TENSORS)])
    arguments = [table, skip, rng.choice(TENSORS), rng.choice(SCALARS), rng.choice(SCALARS), rest]
    constants = {"WIDTH": rng.choice([1, 16, 1.0]), "FLAG": rng.choice([True, False, 1, 0, "ieee", None])}
    return arguments, constants | {"num_warps": rng.choice([1, 4, 4.0])}


def changed(rng, arguments, constants):
    """The call with one of its values taken from another."""
    others, other_constants = call(rng)
    i = rng.randrange(len(arguments) + len(constants))
    if i >= len(arguments):
        name = list(constants)[i - len(arguments)]
        return arguments, constants | {name: other_constants[name]}
    value = others[i]
    if i < 2:
        field = rng.choice(value._fields)
        value = arguments[i]._replace(**{field: getattr(value, field)})
    return [*arguments[:i], value, *arguments[i + 1 :]], constants


@pytest.mark.parametrize("sizes", [(), ("rows", "count")], ids=["", "any size"])
def test_no_key_is_of_two_kernels(sizes):
    kernel = jit.JITFunction(_kernel)
    kernel.sizes = frozenset(sizes)
    bind = jit.create_function_from_signature(kernel.signature, kernel.params, CUDABackend(GPUTarget("cuda", 90, 32)))
    rng, alike, other = random.Random(0), 0, 0

    def keys(arguments, constants):
        _, specialization, options = bind(*launch.general(kernel, arguments), **constants)
        # As text: in Python 1 and True are equal.
        return launch.key_of(0, arguments, constants), repr((specialization, options))

    for _ in range(4000):
        one = call(rng)
        (mine, tritons), (my_other, tritons_other) = keys(*one), keys(*changed(rng, *one))
        if mine == my_other:
            assert tritons == tritons_other, one
            alike += 1
        other += tritons != tritons_other
    assert alike > 400
    assert other > 1000


def test_any_size_is_of_its_width_and_kept_apart_from_strides():
    kernel = jit.JITFunction(_kernel)
    kernel.sizes = frozenset({"rows", "count"})
    table, skip = Rows(STORAGE, 4096, 16, 1, 4096, 16), Skip(STORAGE, tl.constexpr(2))
    found = launch.general(kernel, (table, skip, STORAGE, 4096, 16, 2**40))
    assert found[0] == Rows(STORAGE, 4096, 16, 1, found[3], 16)
    assert found[1:3] == [skip, STORAGE]
    assert found[3] % 16 != 0
    assert found[3] != 1
    assert found[4:] == [16, 2**40]
    assert launch.general(kernel, (table, skip, STORAGE, 2**31))[3] >= 2**31
    transposed = Rows(STORAGE, 4096, 1, 16, 4096, 16)
    assert launch.general(kernel, (transposed,)) == [transposed]


def test_the_page_names_what_is_compiled_for_each_size():
    page = (ROOT / "docs" / "kernels.md").read_text()
    (listed,) = re.findall(r"\(`@launched\(\)`\):(.*?)\.\n", page, re.DOTALL)
    sources = [path.read_text() for path in (ROOT / "kernels").rglob("*.py")]
    # Of `_decorrelate_elements` @triton.jit itself names the sizes.
    found = [name for text in sources for name in re.findall(r"@launched\(\).*\n@triton.jit\ndef (\w+)", text)]
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(found)


def test_interpreted_kernels_are_left_alone():
    if not triton.knobs.runtime.interpret:
        pytest.skip("a GPU is here")
    kernel = triton.jit(_kernel)
    assert launch.launched("rows")(kernel) is kernel
