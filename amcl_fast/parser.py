"""The parser of a run's settings: what is left out that others say follows from those."""

import pydoc
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from .methods import BarlowTwins


class Parser(LightningArgumentParser):
    """Takes temperature.dim of Barlow Twins from data.batch_size where nobody gives it, before settings are checked."""

    def validate(self, cfg: Any, *args: Any, **kwargs: Any) -> None:
        temperature = _of_channels(cfg)
        if temperature is not None and "dim" in temperature and temperature["dim"] is None:
            temperature["dim"] = cfg["data.batch_size"]
        super().validate(cfg, *args, **kwargs)


def _of_channels(settings: Any) -> Any:
    """Settings of a temperature that reads channel vectors, which are as long as the global batch; else None."""
    name = settings.get("model.class_path")
    method = pydoc.locate(name) if isinstance(name, str) else None
    if isinstance(method, type) and issubclass(method, BarlowTwins):
        return settings.get("model.init_args.criterion.init_args.temperature.init_args")
    return None
