"""What keeps the house readable: sizes, and who may import whom."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES, FUNCTION = 400, 100
SUFFIXES = {".py", ".pyi", ".c", ".cpp", ".hpp", ".inc", ".md", ".yaml", ".yml", ".sh", ".toml"}

# What a folder must not know of, whether it is imported at the top or when a function runs.
UNKNOWN = {
    "kernels": ["amcl_fast.ops", "amcl_fast.losses", "amcl_fast.methods", "amcl_fast.data", "benchmarks", "lightning"],
    "amcl_fast/ops": ["amcl_fast.losses", "amcl_fast.methods", "amcl_fast.data", "lightning"],
    "amcl_fast/models": ["amcl_fast.methods", "amcl_fast.callbacks", "amcl_fast.data", "lightning"],
    "amcl_fast/runs": ["amcl_fast.methods", "amcl_fast.callbacks", "amcl_fast.data", "amcl_fast.report", "lightning"],
    "amcl_fast/report": ["amcl_fast.methods", "amcl_fast.callbacks", "amcl_fast.pretraining", "lightning"],
    "amcl_fast/data": ["amcl_fast.methods", "amcl_fast.callbacks", "amcl_fast.pretraining", "amcl_fast.report"],
    "amcl_fast/methods": ["amcl_fast.callbacks", "amcl_fast.data", "amcl_fast.pretraining", "amcl_fast.report"],
    "amcl_fast": ["amcl_fast.cli", "benchmarks", "tests"],
    "benchmarks": ["tests"],
}
ALLOWED = {
    # A command among others, where benchmarks are installed.
    ("amcl_fast/cli.py", "amcl_fast.benchmarks.command"),
    # What machine and commit are is known where they are measured.
    ("amcl_fast/cli.py", "amcl_fast.benchmarks.results.machine"),
    ("amcl_fast/cli.py", "amcl_fast.benchmarks.results.versions"),
    # A name that stays where others import it; it is fetched when somebody asks.
    ("amcl_fast/report/__init__.py", "amcl_fast.callbacks.capture.capture"),
}


@cache
def sources():
    """Paths of what is written by hand here."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git here, which tells what belongs to the project")
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.suffix in SUFFIXES and path.is_file()]


def modules(folder):
    return [path for path in sources() if path.suffix == ".py" and path.is_relative_to(ROOT / folder)]


@cache
def imported(path):
    """Full names of modules and of what is taken from them."""
    return set(_imported(path))


def _imported(path):
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    # Where it is installed: kernels and benchmarks lie in amcl_fast.
    package = ("amcl_fast", *package) if package and package[0] in ("kernels", "benchmarks") else package
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{name}.{alias.name}" for alias in node.names)


def engine():
    """Lines of each file of C++."""
    return {path: path.read_text().splitlines() for path in sources() if path.is_relative_to(ROOT / "csrc")}


def test_no_line_of_the_engine_is_cut_off():
    assert not [
        (path.name, i) for path, lines in engine().items() for i, line in enumerate(lines, 1) if len(line) > 120
    ]


def test_no_function_of_the_engine_is_scrolled_for_twice():
    """What stands at the margin reaches from its name to its brace: a function, or a class with all of its own."""
    sizes = {}
    for path, lines in engine().items():
        for i, line in enumerate(lines):
            if line[:1].isalpha():
                first = i
            elif line in ("}", "};"):
                sizes[f"{path.name}:{first + 1}: {lines[first]}"] = i - first + 1
    assert any("contrast_topk_forward(" in name for name in sizes)
    assert not {name: n for name, n in sizes.items() if n > FUNCTION}


def test_no_file_is_longer_than_a_reader_likes():
    long = {str(path.relative_to(ROOT)): n for path in sources() if (n := len(path.read_text().splitlines())) > LINES}
    assert not long


def test_no_function_is_scrolled_for_twice():
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": n
        for path in modules(".")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (n := node.end_lineno - node.lineno + 1) > FUNCTION
    }
    assert not long


def floors():
    """Of docs/layout.md: modules of each row of the package, and the packages that it imports."""
    table = (ROOT / "docs" / "layout.md").read_text().split("## The package")[1].split("## Data")[0]
    rows = [line.strip("| ").split("|") for line in table.splitlines() if line.startswith("| `")]
    other = {"DALI": "nvidia", "Pillow": "PIL", "PyYAML": "yaml"}
    return [
        (
            re.findall(r"`(\w+)(?:\.py|/)`", row[0]),
            {other.get(name, name) for name in re.findall(r"\w+", "".join(row[2:]))},
        )
        for row in rows
    ]


def test_the_page_of_the_layout_says_who_imports_what():
    floor = {module: place for place, (names, _) in enumerate(floors()) for module in names}
    assert floor.keys() == {
        path.relative_to(ROOT / "amcl_fast").parts[0].removesuffix(".py") for path in modules("amcl_fast")
    } - {"__init__"}
    packages: list[set[str]] = [set() for _ in floors()]
    upwards = set()
    for path in modules("amcl_fast"):
        own = floor.get(path.relative_to(ROOT / "amcl_fast").parts[0].removesuffix(".py"))
        for name in imported(path) if own is not None else ():
            first, *rest = name.split(".")
            if first != "amcl_fast":
                packages[own] |= {first} - sys.stdlib_module_names
            elif floor.get(rest[0] if rest else "", -1) > own:
                upwards.add((str(path.relative_to(ROOT)), name))
    assert packages == [named for _, named in floors()]
    assert upwards <= ALLOWED


@pytest.mark.parametrize("folder", UNKNOWN)
def test_nobody_looks_upwards(folder):
    paths = modules(folder)
    assert paths
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in paths
        for name in imported(path)
        for unknown in UNKNOWN[folder]
        if f"{name}.".startswith(f"{unknown}.") or f"{name}.".startswith(f"amcl_fast.{unknown}.")
        if (str(path.relative_to(ROOT)), name) not in ALLOWED
    }
    assert not wrong


def test_report_and_runs_load_no_trainer():
    """Nor the data: whoever reads a run or draws it waits for torch at the most."""
    code = (
        "import pkgutil, sys, amcl_fast.report, amcl_fast.runs\n"
        "from importlib import import_module\n"
        "for package in (amcl_fast.report, amcl_fast.runs):\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):\n"
        "        import_module(module.name)\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    for folder in ("amcl_fast/report", "amcl_fast/runs"):
        names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules(folder)}
        assert {name.removesuffix(".__init__") for name in names} <= loaded
    trainers = ["lightning", "tensorboard", "nvidia", "torchvision"]
    trainers += ["amcl_fast.methods", "amcl_fast.callbacks", "amcl_fast.pretraining", "amcl_fast.data"]
    assert not {name for name in loaded if f"{name}.".startswith(tuple(f"{trainer}." for trainer in trainers))}


def test_no_text_is_read_or_written_in_the_encoding_of_the_locale():
    """Which is not UTF-8 everywhere, and recipes and logs are."""
    found = []
    for path in modules("amcl_fast"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            given = [ast.unparse(argument) for argument in node.args] + [str(keyword.arg) for keyword in node.keywords]
            if name in ("read_text", "write_text"):
                text = node
            elif name == "open" and ast.unparse(node.func) in ("open", "path.open"):
                text = None if any("b" in argument for argument in given[1:] if argument.startswith("'")) else node
                text = None if given and re.fullmatch("'[rwax+]*b[rwax+]*'", given[0]) else text
            else:
                continue
            if text is not None and not any("utf-8" in argument or argument == "encoding" for argument in given):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not found
