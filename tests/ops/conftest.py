"""What tests of the operators share."""

import pytest

from amcl_fast import capabilities

if capabilities.native_status().available:
    from amcl_fast import _native

    # Where there is none, its tests are skipped whole.
    @pytest.fixture(params=_native.instruction_sets())
    def instruction_set(request):
        """Each of the C++ engine's that the processor has; the best one again afterwards."""
        _native.use_instruction_set(request.param)
        yield request.param
        _native.use_instruction_set(_native.instruction_sets()[0])
