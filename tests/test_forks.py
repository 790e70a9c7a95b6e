"""What the tests' own settings promise to those that fork."""

import gc
import os
import weakref


class Cycle:
    """Is found by the collector alone."""

    def __init__(self):
        self.itself = self


def test_a_forked_child_collects_nothing_of_its_parent():
    collecting = gc.isenabled()
    gc.disable()
    try:
        cycle = weakref.ref(Cycle())
        child = os.fork()
        if not child:
            gc.collect()
            os._exit(0 if cycle() is not None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        # And the parent goes on collecting it.
        gc.collect()
        assert cycle() is None
    finally:
        if collecting:
            gc.enable()
