"""Settings and fixtures for all tests."""

import gc
import os

import pytest
import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    # Read when triton is imported, which any test may do first.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    from tests.helpers.kernels.interpreter import quicken

    quicken()

    # torch.manual_seed puts the seeds of devices off, with where it was called from: a millisecond of pytest's stack.
    for module in (torch.cuda.random, torch.xpu.random, torch.mtia):
        module._lazy_call = lambda *_, **__: None

# A forked child that collects what its parent has let go waits for ever for threads that it does not have: a pipeline
# of DALI, of which a cycle is left over from an earlier test, ends its threads where it ends. Nor need it be collected
# there. What `subprocess` starts is no such child, and is not slowed by this.
os.register_at_fork(before=gc.freeze, after_in_parent=gc.unfreeze)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than there are cores: many tests wait for processes of their own."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported and found here stays: nobody looks through it for garbage, now or later, until a test forks."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that at the end no worker is alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if "spawn" in item.function.__code__.co_names and not item.get_closest_marker("distributed"):
            raise pytest.UsageError(f"{item.nodeid} starts several processes: mark it distributed")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One for all workers of a run, and not the user's; its users lock it themselves."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    os.environ["AMCL_FAST_CACHE"] = str(shared / "amcl-fast-cache")


@pytest.fixture
def undrawn(monkeypatch):
    """Runs end with a report that has no pictures, since nobody looks at them; `amcl-fast report` draws them."""
    from amcl_fast.callbacks import draw_report
    from amcl_fast.report import page

    def write(run_dir):
        with pytest.MonkeyPatch.context() as without:
            without.setattr(page, "draw_figures", lambda run: {})
            return page.write_report(run_dir)

    monkeypatch.setattr(draw_report, "write_report", write)


@pytest.fixture
def port():
    """Of a store that the parent keeps, as torchrun does: a port that was free a while ago may not be any more."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield store.port
    del store


@pytest.fixture(autouse=True)
def poisoned_empty():
    """Every torch.empty is filled with NaN, so that reading what nothing wrote shows in the result."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
