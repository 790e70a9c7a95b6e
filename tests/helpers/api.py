"""What others rely on, as the lines of tests/api.txt: `python -m tests.helpers.api` writes the file anew.

Names and signatures of the public modules, recipes, the class paths and settings of config.yaml files, the names of
the weights in checkpoints, and the options of the commands.
"""

import argparse
import inspect
import re
import runpy
import tomllib
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest import mock

import yaml

from amcl_fast import cli
from amcl_fast.recipes import FOLDER, FRAMEWORKS, recipe_names
from tests.helpers.toy_methods import method

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "api.txt"
REWRITE = "python -m tests.helpers.api"

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for pattern in ("*.py", "*/__init__.py")
    for path in (ROOT / "amcl_fast").glob(pattern)
    if re.search(r"^__all__ =", path.read_text(), re.MULTILINE)
)
"""Public modules: those at the top that list their public names; what else has no underscore is the package's."""

COMMANDS = (
    "",
    "pretrain",
    "recipes",
    "evaluate",
    "export",
    "report",
    "study",
    "study epochs",
    "study temperatures",
    "study heads",
    "study top-k",
    "study augmentations",
    "study similarities",
    "pack",
    "bench",
    "doctor",
)


def lines() -> list[str]:
    """The table, part by part."""
    named = [f"{module}.{name}" for module in MODULES for name in import_module(module).__all__]
    named = [path for path in named if not path.endswith("__version__")] + ["amcl_fast.pretrain"]
    parts = [
        ("Names", [line for path in named for line in _of(path, named)]),
        ("Recipes", recipe_names()),
        ("Class paths of recipes and config.yaml", [f"{path} is a class" for path in sorted(_class_paths())]),
        ("Settings of config.yaml beside model, data and trainer", _settings()),
        ("Weights of checkpoints beside the encoder's", [line for name in FRAMEWORKS for line in _weights(name)]),
        ("Commands", [*_scripts(), *(_command(name) for name in COMMANDS), _gpu()]),
    ]
    return [line for title, part in parts for line in ("", f"# {title}", *part)][1:]


def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _of(path: str, public: list[str]) -> Iterator[str]:
    """Lines of a public name: its signature, and those of a class's own methods and properties; or which it is."""
    value = _named(path)
    first = next(other for other in public if _named(other) is value)
    if first != path:
        yield f"{path} is {first}"
        return
    if not callable(value):
        yield f"{path} = {value!r}"
        return
    yield path + _signature(value)
    if not inspect.isclass(value):
        return
    # Of bases too; what a public one has is told there.
    ours = [base for base in value.__mro__ if base.__module__.startswith("amcl_fast.")]
    told = [_named(other) for other in public]
    ours = [base for base in ours if base is value or base not in told]
    others = [base for base in value.__mro__ if base not in ours]
    for method_name in sorted({name for base in ours for name in vars(base) if not name.startswith("_")}):
        # What a hook of Lightning or torch is called with is theirs.
        if method_name != "forward" and any(method_name in vars(base) for base in others):
            continue
        member = inspect.getattr_static(value, method_name)
        if isinstance(member, property):
            yield f"{path}.{method_name}"
        elif isinstance(member, FunctionType | classmethod | staticmethod):
            yield f"{path}.{method_name}{_signature(getattr(value, method_name))}"


def _signature(value: Any) -> str:
    """Parameters, their kinds and defaults, without annotations."""
    try:
        signature = inspect.signature(value)
    except ValueError:  # of a class that is called like one of C's
        return "(...)"
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=parameters, return_annotation=signature.empty))
    return re.sub(r"<function (\S+) at \w+>", r"\1", text)


def _class_paths() -> set[str]:
    """Every class path of the recipes, once it is known to lead to a class."""
    texts = "".join(file.read_text() for file in FOLDER.rglob("*.yaml"))
    paths = set(re.findall(r"class_path: *([\w.]+)", texts))
    assert all(inspect.isclass(_named(path)) for path in paths)
    return paths


def _settings() -> list[str]:
    config = yaml.safe_load(_printed_by_the_command(["pretrain", "--recipe", "demo", "--print_config"]))
    sections = {name: value for name, value in config.items() if name not in ("model", "data", "trainer")}
    return sorted(
        f"{section}.{name}" if name else section
        for section, value in sections.items()
        for name in (value if isinstance(value, dict) else [""])
    )


def _weights(framework: str) -> list[str]:
    names = [name for name in method(framework).state_dict() if "backbone." not in name and "copies.0." not in name]
    return [f"{framework}: {name}" for name in names]


def _scripts() -> list[str]:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return [f"{name} = {target}" for name, target in scripts.items()]


def _command(name: str) -> str:
    return f"amcl-fast {name}".rstrip() + _usage(_printed_by_the_command([*name.split(), "--help"]))


def _gpu() -> str:
    with mock.patch("sys.argv", ["gpu", "--help"]):
        printed = _printed(lambda: runpy.run_module("benchmarks.gpu", run_name="__main__"))
    return "python -m benchmarks.gpu" + _usage(printed)


def _usage(told: str) -> str:
    """What the usage of a help names after the program: options with their values, then what has no name."""
    usage = " ".join(told.split("\n\n")[0].split())
    return usage[usage.index("[-h]") + len("[-h]") :]


def _printed_by_the_command(arguments: list[str]) -> str:
    return _printed(lambda: cli.main(arguments))


def _printed(call: Callable[[], object]) -> str:
    output = StringIO()
    with redirect_stdout(output), suppress(SystemExit):
        call()
    return output.getvalue()


def main() -> None:
    """Write the table."""
    argparse.ArgumentParser(prog=REWRITE, description=__doc__.splitlines()[0]).parse_args()
    TABLE.write_text("\n".join(lines()) + "\n")


if __name__ == "__main__":
    main()
