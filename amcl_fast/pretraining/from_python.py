"""A run from a notebook or a script: `amcl_fast.pretrain`, with the settings of the command line as arguments."""

import builtins
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..extras import extras_named

with extras_named("training"):
    import lightning as L

from ..callbacks import Interrupted, StopSignals
from ..data.own.items import class_name
from ..methods import Method
from ..models import BackboneConfig
from ..paths import expanded
from ..runs.directory import RunDirectory
from .command import RunError, SettingsError, run
from .given import Given
from .given_data import given_data
from .pretrained import Pretrained, pretrained
from .python_arguments import arguments_of
from .unchanged import unchanged

Augment = Callable[[Any], torch.Tensor]


def pretrain(
    recipe: str | Path | None = None,
    data: Any = None,
    *,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    trust: bool = False,
    method: Method | type[Method] | str | None = None,
    backbone: nn.Module | type[nn.Module] | BackboneConfig | Mapping[str, Any] | str | None = None,
    augment: Augment | Sequence[Augment] | None = None,
    evaluation: Any = None,
    callbacks: Sequence[L.Callback] = (),
    **settings: Any,
) -> Pretrained:
    """Train as `amcl-fast pretrain` does, and return the encoder with what was measured.

    The process stays as it was: signals, warnings, logging, environment, random generators. Several processes are for
    scripts, each of which calls this.

    Args:
        recipe: name of a recipe.
        data: path or name as --data; settings of the data as a mapping; a dataset of images (torchvision's, Hugging
            Face's, any with `len` and items by place: image, (image, label), or a mapping with both); a loader of
            batches (views, labels); or a LightningDataModule with such a loader.
        run_dir: folder of a new run; None: `runs/NAME-TIME`.
        resume: run directory or checkpoint to go on from. Objects that the run was begun with are given again.
        trust: import what a resumed run names from outside this package, torch, torchvision and Lightning.
        method: a `Method` in place of a recipe, or a class of one, or its path.
        backbone: encoder in place of the recipe's: a module that makes (n, D) of images (n, 3, H, W); a class of one;
            a name or settings as of `BackboneConfig`. A module that is in evaluation mode as a whole, as the `encoder`
            of an earlier result is, is set to training.
        augment: what makes a view, a float tensor (3, S, S), of a PIL image of the dataset: one function for two
            views, or one for each, in place of data.views and data.augmentation.
        evaluation: what kNN is measured on. With a dataset as `data` the held-out images, another dataset; None: a
            tenth of `data`. With a loader two datasets, (training images, held-out images); None: nothing.
        callbacks: of Lightning, beside those of the package.
        settings: those of the command line, by their short names (`epochs=3, batch_size=64, lr=0.1, devices=1,
            seed=0`), in groups (`trainer={"max_epochs": 3}, model={"optimizer": {"lr": 0.1}}`) or by their whole names
            (`**{"model.optimizer.lr": 0.1}`).

    Raises:
        ValueError: a setting, the data or the checkpoint is such that no run can start; the message is one line.
        RunError: the run has ended before its end, of a loss that is not finite for example.
        KeyboardInterrupt: Ctrl-C: the run is saved, and the message says how it goes on. A second one ends at once.
        Interrupted: a SystemExit, after any other signal that asks a run to stop. It is saved.
    """
    if not isinstance(callbacks, Sequence) or not all(isinstance(callback, L.Callback) for callback in callbacks):
        raise ValueError(f"callbacks must be a list of Lightning's callbacks, got {callbacks!r}")
    arguments, given = arguments_of(settings), Given(callbacks=tuple(callbacks), in_python=True)
    given, arguments = _with_model(given, arguments, recipe, method, backbone)
    path: str | None = None
    if data is None or isinstance(data, Mapping | str | os.PathLike):
        for name, value in (("augment", augment), ("evaluation", evaluation)):
            if value is not None:
                raise ValueError(
                    f"{name} must be left out unless data is a dataset or a loader, got {class_name(value)}"
                )
        if isinstance(data, Mapping):
            arguments = {**arguments_of({"data": data}), **arguments}
        else:
            path = None if data is None else os.fspath(data)
    else:
        given, arguments = given_data(given, arguments, data, evaluation, augment)
    if _in_notebook():
        _of_one_process(arguments, resume)
    begun: list[Path] = []
    _set_training(given.method, given.backbone if given.method is None else given.method.backbone)
    with unchanged():
        try:
            cli = run(
                None if recipe is None else str(recipe),
                path,
                None if resume is None else str(resume),
                None if run_dir is None else Path(expanded(os.fspath(run_dir))),
                [f"--{name}={text}" for name, text in arguments.items()],
                trust=trust,
                begun=begun.append,
                given=given,
                signals=StopSignals(of_command=False),
            )
        except SettingsError as error:
            raise SettingsError(str(error)) from None  # one line, not what the parser and others made of it
        except RunError as error:
            if error.code == 2:  # before its first step
                raise SettingsError(str(error)) from None
            raise
        except Interrupted as interrupted:
            if interrupted.signum != signal.SIGINT:
                raise
            saved = bool(begun) and RunDirectory(begun[0]).last.is_file()
            how = f"stopped, and saved; go on with {given.go_on(begun[0])}" if saved else "stopped; nothing was saved"
            raise KeyboardInterrupt(how) from None
        return pretrained(cli)


def _with_model(
    given: Given, arguments: dict[str, str], recipe: object, method: Any, backbone: Any
) -> tuple[Given, dict[str, str]]:
    """What is given and set with a method and an encoder, objects or names.

    Raises:
        ValueError: one of them is none, or something else says the same.
    """
    if isinstance(method, Method):
        of_model = next((name for name in arguments if name.split(".")[0] == "model"), None)
        for name, value in (("recipe", recipe), ("backbone", backbone), (of_model, arguments.get(of_model or ""))):
            if value is not None:
                raise ValueError(f"{name} must be left out with a method, which has all of a model, got {value!r}")
        return replace(given, method=method, named={**given.named, "method": class_name(method)}), arguments
    if method is not None:
        path = class_name(method) if isinstance(method, type) and issubclass(method, Method) else method
        if not isinstance(path, str):
            raise ValueError(f"method must be a Method, a class of one or its path, got {class_name(method)}")
        if "model" in arguments:
            raise ValueError(f"method must be left out with model, which names one, got {path}")
        arguments = {"model": path, **arguments}
    if isinstance(backbone, nn.Module):
        other = next((name for name in arguments if name.startswith("model.backbone")), None)
        if other is not None:
            raise ValueError(f"{other} must be left out with a backbone, which is made already, got {arguments[other]}")
        return replace(given, backbone=backbone, named={**given.named, "backbone": class_name(backbone)}), arguments
    if isinstance(backbone, type) and issubclass(backbone, nn.Module):
        backbone = class_name(backbone)
    if isinstance(backbone, str):
        backbone = {"name": backbone}
    if isinstance(backbone, Mapping | BackboneConfig):
        return given, {**arguments, **arguments_of({"model.backbone": backbone}, beside=arguments)}
    if backbone is not None:
        raise ValueError(
            f"backbone must be a torch.nn.Module, a class of one, a name or settings, got {class_name(backbone)}"
        )
    return given, arguments


def _set_training(*modules: nn.Module | None) -> None:
    """Have those train that are in evaluation mode as a whole, in which a run before has left its encoder."""
    for module in modules:
        if module is not None and not module.training:
            module.train()


def _in_notebook() -> bool:
    """Whether somebody types into this process: then there is no script that other processes could run."""
    return hasattr(builtins, "get_ipython") or hasattr(sys, "ps1")


def _of_one_process(arguments: dict[str, str], resume: object) -> None:
    """Train in this process alone, as a notebook does."""
    if resume is None and torch.cuda.device_count() > 1:
        arguments.setdefault("trainer.devices", "1")
    devices = arguments.get("trainer.devices", "1")
    if devices not in ("1", "auto", "[0]"):
        raise ValueError(
            f"devices must be 1 in a notebook, got {devices}; a script and amcl-fast pretrain take several"
        )
