"""What a run from Python brings as objects in place of settings: a method, an encoder, data, callbacks."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import nn

from ..data import ContrastiveDataModule
from ..methods import Method
from ..models.own import OwnEncoder
from ..runs.resuming import Resumed

RECORDED = "given"
"""Name in config.yaml of what was given as objects: argument to the class of the object."""


@dataclass(frozen=True)
class Given:
    """Objects of a run; what is None is made of settings.

    Attributes:
        method: ready to train; then there are no settings of a model.
        backbone: encoder of the method that settings describe.
        data: makes the data module, of the settings of data as keyword arguments.
        callbacks: of the trainer, beside those of the package.
        in_python: whether the run was begun by a call, and not by the command.
        named: the class of each of the first three, by name, as config.yaml keeps it.
    """

    method: Method | None = None
    backbone: nn.Module | None = None
    data: Callable[..., L.LightningDataModule] | None = None
    callbacks: Sequence[L.Callback] = ()
    in_python: bool = False
    named: Mapping[str, str] = field(default_factory=dict)

    @property
    def recorded(self) -> str:
        """What config.yaml has of them beside the settings that were parsed, as YAML."""
        if not self.named:
            return ""
        model = {} if self.method is None else {"model": {"class_path": self.named["method"], **_encoder(self.method)}}
        return yaml.safe_dump({RECORDED: dict(self.named), **model}, sort_keys=False, allow_unicode=True)

    def go_on(self, run_dir: Path, *, without_limit: bool = False) -> str:
        """How a run goes on, without its trainer.max_time if that is wanted."""
        if not self.in_python:
            limit = " --trainer.max_time null" if without_limit else ""
            return f"amcl-fast pretrain --resume {shlex.quote(str(run_dir))}{limit}"
        limit = ", trainer={'max_time': None}" if without_limit else ""
        same = "".join(f", {name}=…" for name in self.named)
        return f"amcl_fast.pretrain(resume={str(run_dir)!r}{same}{limit})"

    def in_place_of(self, resumed: Resumed, run_dir: Path) -> Resumed:
        """What a run goes on from, without what these objects replace.

        Raises:
            ValueError: the run was begun with other kinds of objects.
        """
        settings = dict(resumed.settings)
        before = settings.pop(RECORDED, None)
        before = before if isinstance(before, dict) else {}
        lacking = [f"{name}=… ({before[name]})" for name in before if name not in self.named]
        if lacking:
            again = Given(named=before, in_python=True).go_on(run_dir)
            raise ValueError(
                f"{run_dir} was begun from Python with {' and '.join(lacking)}, which no file holds: go on from Python "
                f"with the same, {again}"
            )
        for name, kind in self.named.items():
            if name not in before:
                raise ValueError(f"{name} must be left out, for {run_dir} was begun without, got {kind}")
            if kind != before[name]:
                raise ValueError(f"{name} must be of {before[name]}, with which {run_dir} was begun, got {kind}")
        model = settings.get("model")
        if "method" in before:
            settings.pop("model", None)
        elif "backbone" in before and isinstance(model, dict) and isinstance(model.get("init_args"), dict):
            arguments = {name: value for name, value in model["init_args"].items() if name != "backbone"}
            settings["model"] = {**model, "init_args": arguments}
        return replace(resumed, settings=settings)


NOTHING = Given()


class ParserOfGiven(LightningArgumentParser):
    """Has no settings of what is given as an object."""

    without: str | None = None
    """Key of that."""

    def add_lightning_class_args(self, lightning_class: Any, nested_key: str, *args: Any, **kwargs: Any) -> list[str]:
        if nested_key == self.without:
            return []
        return super().add_lightning_class_args(lightning_class, nested_key, *args, **kwargs)


class CLIOfGiven(LightningCLI):
    """Puts objects where it would make some of settings."""

    given: Given

    def add_core_arguments_to_parser(self, parser: ParserOfGiven) -> None:  # type: ignore[override]
        parser.without = None if self.given.method is None else "model"
        super().add_core_arguments_to_parser(parser)

    def _add_instantiators(self) -> None:
        super()._add_instantiators()
        backbone, data = self.given.backbone, self.given.data
        if backbone is not None:
            name, size = self.given.named["backbone"], self.config.data.size

            def method(cls: type, **settings: Any) -> Any:
                return cls(**{**settings, "backbone": OwnEncoder(backbone, name, size)})

            _instantiate(self.parser, Method, method)
        if data is not None:
            _instantiate(self.parser, ContrastiveDataModule, lambda cls, **settings: data(**settings))


def _instantiate(parser: LightningArgumentParser, kind: type, make: Callable[..., Any]) -> None:
    def instantiator(cls: type, *args: Any, applied_instantiation_links: Any = None, **settings: Any) -> Any:
        return make(cls, *args, **settings)

    parser.add_instantiator(instantiator, kind, subclasses=True, prepend=True)


def _encoder(method: Method) -> dict[str, Any]:
    """Settings of a method's encoder, by which it is read back; {} of a module of the user's own."""
    config = method.backbone_config
    return {} if config is None else {"init_args": {"backbone": dict(vars(config))}}
