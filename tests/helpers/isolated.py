"""Environments that hold some of the installed distributions and nothing else, made of links, for real commands."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).resolve().parents[2]


def closure(*requirements: str) -> list[importlib.metadata.Distribution]:
    """What pip would install for these requirements, of what is installed here, amcl_fast left out."""
    found: dict[str, importlib.metadata.Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(requirement, "") for requirement in map(Requirement, requirements)]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        distribution = importlib.metadata.distribution(requirement.name)
        if name != "amcl-fast":
            found[name] = distribution
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in done:
                done.add((name, wanted))
                waiting += [(Requirement(line), wanted) for line in distribution.requires or ()]
    return list(found.values())


class Environment:
    """A folder of links to distributions and to this package; nothing else can be imported from it.

    Args:
        folder: where the links go.
        extras: of amcl_fast; none: what a plain install brings.
        without: distributions that are left out all the same.
    """

    def __init__(self, folder: Path, *extras: str, without: tuple[str, ...] = ()) -> None:
        self.site, self.package = folder / "site", folder / "package"
        requirement = f"amcl-fast[{','.join(extras)}]" if extras else "amcl-fast"
        self.distributions = [d for d in closure(requirement) if canonicalize_name(d.name) not in without]
        for distribution in self.distributions:
            self._link(distribution)
        (self.package / "amcl_fast").mkdir(parents=True)
        for path in (_ROOT / "amcl_fast").iterdir():
            (self.package / "amcl_fast" / path.name).symlink_to(path)
        for name in ("kernels", "benchmarks"):
            (self.package / "amcl_fast" / name).symlink_to(_ROOT / name)

    def _link(self, distribution: importlib.metadata.Distribution) -> None:
        """Whole folders where they are one distribution's, and one level more in `nvidia`, which many share."""
        tops = set()
        for file in distribution.files or ():
            depth = 2 if file.parts[0] == "nvidia" else 1
            if file.parts[0] not in ("..", "__pycache__"):
                tops.add(Path(*file.parts[:depth]))
        for top in tops:
            source, link = Path(str(distribution.locate_file(top))), self.site / top
            link.parent.mkdir(parents=True, exist_ok=True)
            if source.exists() and not link.is_symlink():
                link.symlink_to(source)

    def python(self, code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        """Run code in it, apart from this environment's packages, the user's and the current folder."""
        paths = [str(self.package), str(self.site)]
        command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"]
        command += map(str, arguments)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload]

    def command(self, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        """Run `amcl-fast` in it."""
        code = "from amcl_fast.cli import main\nsys.exit(main())"
        return self.python(code, *arguments, **options)
