"""Two results side by side: two JSON files, or two commits that are measured here in turn.

A commit is checked out into a temporary git worktree and installed from there into a temporary folder. A process each
runs the present case list on it, one call at a time in turn, so that drift of the machine meets both alike.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import results
from .cases import Case, select
from .timing import summary


def compare(a: str, b: str, device: str, substring: str, backend: str, seconds: float) -> str:
    """Markdown table of medians and ratios, a line a case.

    Args:
        a, b: both paths of result files, or both commits.
        device: `cpu` or `cuda`, for commits.
        substring: part of the names of the cases.
        backend: of our implementation, for commits.
        seconds: time for the rounds of each case, for commits.

    Raises:
        ValueError: a is a file and b is not or the reverse, no commit of that name, a build failed, or the files share
            no case.
    """
    files = [Path(name).is_file() for name in (a, b)]
    if all(files):
        return of_files(Path(a), Path(b), substring)
    if any(files):
        raise ValueError(f"--compare takes two result files or two commits, got {a!r} and {b!r}")
    return _of_commits(a, b, select(device, substring), device, backend, seconds)


def of_files(a: Path, b: Path, substring: str = "") -> str:
    """Table of the cases that both files hold."""
    times = []
    for path in (a, b):
        rows = results.load(path)["sections"].get("operators", {"rows": []})["rows"]
        times.append({row["case"]: row["runs"]["ours"]["median_ms"] for row in rows})
    shared = [name for name in times[0] if name in times[1] and substring.lower() in name.lower()]
    if not shared:
        raise ValueError(f"{a} and {b} share no case whose name contains {substring!r}")
    return _table(a.stem, b.stem, [(name, times[0][name], times[1][name]) for name in shared])


def _of_commits(a: str, b: str, cases: list[Case], device: str, backend: str, seconds: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        try:
            for number, commit in enumerate((a, b)):
                site = _install(commit, Path(folder, str(number)))
                sides.append(_Side(commit, site, device, backend))
            lines = []
            for case in cases:
                medians = _in_turn(sides, case, seconds)
                print(f"{case.name}: {medians[0]:.3f} ms, {medians[1]:.3f} ms", file=sys.stderr, flush=True)
                lines.append((case.name, *medians))
        finally:
            for side in sides:
                side.close()
    return _table(a, b, lines)  # type: ignore[arg-type]


def _install(commit: str, folder: Path) -> Path:
    """A folder with amcl_fast of `commit`, built, and with the present benchmarks beside it."""
    tree, site = folder / "tree", folder / "site"
    _run(f"check out {commit!r}", "git", "worktree", "add", "--detach", str(tree), commit)
    try:
        print(f"building {commit}", file=sys.stderr, flush=True)
        options = ("--quiet", "--no-build-isolation", "--no-deps", "--target", str(site))
        _run(f"install {commit!r}", sys.executable, "-m", "pip", "install", *options, str(tree))
    finally:
        _run("remove the worktree", "git", "worktree", "remove", "--force", str(tree))
    note = site / "amcl_fast" / "_native_missing.txt"
    if note.exists():
        raise ValueError(f"the native module of {commit!r} was not built: {note.read_text().strip()}")
    shutil.copytree(Path(__file__).parent, site / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__"))
    return site


def _run(step: str, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"could not {step}: {(done.stderr or done.stdout).strip()[-500:]}")


class _Side:
    """A process that measures one commit when it is asked to."""

    def __init__(self, commit: str, site: Path, device: str, backend: str) -> None:
        self._commit = commit
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compare", device, backend, str(torch.get_num_threads())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=site,
            env=os.environ | {"PYTHONPATH": str(site)},
        )  # fmt: skip

    def ask(self, request: Any) -> Any:
        """The answer to a request: a case, or null for one more call."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if not answer:
            raise ValueError(f"{self._commit} cannot run these cases; its error is above")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _in_turn(sides: list[_Side], case: Case, seconds: float) -> list[float]:
    for side in sides:
        if problem := side.ask(dataclasses.asdict(case)):
            raise ValueError(problem)
    times: list[list[float]] = [[] for _ in sides]
    stop = time.monotonic() + seconds
    while time.monotonic() < stop or len(times[0]) < 3:
        for side, values in zip(sides, times, strict=True):
            values.append(side.ask(None))
    return [summary(values)["median_ms"] for values in times]


def _answer(device: str, backend: str, threads: int) -> None:
    """Serve the requests of `_Side`, from stdin to stdout."""
    from .check import Oracle
    from .operators import step_of
    from .peers import implementation
    from .timing import once

    torch.set_num_threads(threads)
    step: Callable[[], object] = lambda: None  # noqa: E731
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any
        if request is None:
            answer = once(step, device)
        else:
            case = Case(**request)
            dtype = case.dtype_on(device)
            run, oracle = implementation(backend, case), Oracle(case, device, dtype)
            error = oracle.error(run)
            step = step_of(run, [case.operands(device, dtype, seed) for seed in range(2)])
            step()
            answer = None
            if error > oracle.tolerance:
                answer = f"{case.name}: relative error {error:.1e}, tolerance {oracle.tolerance:.1e}; not timed"
        print(json.dumps(answer), flush=True)


def _table(a: str, b: str, lines: list[tuple[str, float, float]]) -> str:
    rows = [f"| case | {a}, ms | {b}, ms | {a} / {b} |", "|---|---|---|---|"]
    rows += [f"| {name} | {x:.3f} | {y:.3f} | {x / y:.2f} |" for name, x, y in lines]
    return "\n".join(rows)


if __name__ == "__main__":
    _answer(sys.argv[1], sys.argv[2], int(sys.argv[3]))
