"""A process that stays as it was while a run goes through it."""

import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ..runs.directory import VARIABLE
from .told import quieten


@contextmanager
def unchanged() -> Iterator[None]:
    """Within the block the screen is the run's (`quieten`); after it all is as before.

    That is warnings, levels of Lightning's loggers, random generators and the environment; the variables by which
    several processes have found each other stay, for the others are there until the script ends.
    """
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "lightning"]
    levels = {name: logging.getLogger(name).level for name in names}
    environment, give_back = dict(os.environ), _generators()
    dtype = torch.get_default_dtype()
    try:
        with warnings.catch_warnings():
            quieten()
            yield
    finally:
        torch.set_default_dtype(dtype)
        give_back()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
        else:
            os.environ.pop(VARIABLE, None)


def _generators() -> Callable[[], None]:
    """Take note of Python's, numpy's and torch's generators; what gives them back."""
    python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def give_back() -> None:
        random.setstate(python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        torch.set_rng_state(of_torch)
        if of_gpus is not None:
            torch.cuda.set_rng_state_all(of_gpus)

    return give_back
