import os
import signal

import lightning as L
import pytest
import torch
from running import fit

from amcl_fast.callbacks import Checkpoint, Interrupted, SaveOnSignal


class Kill(L.Callback):
    """Sends this process a signal within a step."""

    def __init__(self, signum, step):
        self.signum, self.step = signum, step

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
# Step 4 is the last of its epoch: the epoch's closing work comes first.
@pytest.mark.parametrize("step", [2, 4])
def test_saves_after_the_step_and_exits_as_shells_expect(tmp_path, signum, step, capfd):
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    checkpoint = Checkpoint(every_n_epochs=9)
    with pytest.raises(Interrupted) as stopped:
        fit(tmp_path, checkpoint=checkpoint, extra=[SaveOnSignal(checkpoint), Kill(signum, step - 1)])
    assert stopped.value.code == 128 + signum
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step
    assert signal.Signals(signum).name in capfd.readouterr().err
    assert handlers == {s: signal.getsignal(s) for s in handlers}


def test_handlers_are_given_back_after_training(tmp_path):
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    checkpoint = Checkpoint()
    fit(tmp_path, checkpoint=checkpoint, extra=[SaveOnSignal(checkpoint)], max_epochs=1)
    assert handlers == {s: signal.getsignal(s) for s in handlers}
