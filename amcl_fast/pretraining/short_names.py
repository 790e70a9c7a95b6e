"""Short names of the settings that everyone gives: --epochs 3 is --trainer.max_epochs 3."""

from collections.abc import Sequence

SHORT_NAMES: dict[str, str] = {
    "epochs": "trainer.max_epochs",
    "batch_size": "data.batch_size",
    "lr": "model.optimizer.lr",
    "devices": "trainer.devices",
    "seed": "seed_everything",
}
"""Short name to setting. On the command line dashes may stand for underscores; --run_dir is of the command itself."""


def long_name(option: str) -> str | None:
    """The setting that an option such as --batch-size is short for, as --data.batch_size; None if it is not short."""
    name = SHORT_NAMES.get(option[2:].replace("-", "_")) if option.startswith("--") else None
    return None if name is None else f"--{name}"


def with_long_names(settings: Sequence[str]) -> list[str]:
    """Settings of the command line, none of them by its short name.

    Raises:
        ValueError: one is given by both of its names.
    """
    written: dict[str, str] = {}
    found = []
    for setting in settings:
        option, equals, value = setting.partition("=")
        name = long_name(option) or option
        found.append(f"{name}{equals}{value}")
        if name[2:] in SHORT_NAMES.values() and written.setdefault(name, option) != option:
            short, long = sorted((written[name], option), key=len)
            raise ValueError(f"{short} must be given once, got it and {long}, which is the same setting")
    return found
