"""Two results side by side: two JSON files, or two commits that are measured here in turn.

A commit is checked out into a temporary git worktree and installed from there into a temporary folder. A process each
runs the present case list on it, one call at a time in turn, so that drift of the machine meets both alike.

The section `compare` of the machine's JSON has in its environment `compared`, the two commits [a, b] in full, and a row
a case: `case`, `dtype`, `runs` (`a` and `b`: `median_ms`, `q1_ms`, `q3_ms` and `rounds`, or `failed` and why), and, if
both ran, `ratio`, the median of a / b over the rounds, with `ratio_q1` and `ratio_q3`.
"""

import contextlib
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
from typing import Any, TextIO

import torch

from . import results
from .cases import Case, select
from .timing import summary

Row = dict[str, Any]
# The process of a side. What its commit prints, at whatever import, goes to stderr: only answers go to the pipe.
_PROCESS = """
import os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from benchmarks.compare import serve
serve(answers, *sys.argv[1:])
"""


def compare(
    a: str, b: str, device: str, substring: str, backend: str, seconds: float, output: Path | None = None
) -> str:
    """Markdown table of medians and ratios, a line a case; of commits, with all cases, also into the machine's JSON.

    The JSON has the rows so far after every case.

    Args:
        a, b: both paths of result files, or both commits.
        device: `cpu` or `cuda`, for commits.
        substring: part of the names of the cases.
        backend: of our implementation, for commits.
        seconds: time for the rounds of each case, for commits.
        output: folder of the JSON, for commits; None: `results.default_folder()`.

    Raises:
        ValueError: a is a file and b is not or the reverse, no commit of that name, a build failed, or the files share
            no case.
    """
    files = [Path(name).is_file() for name in (a, b)]
    if all(files):
        return of_files(Path(a), Path(b), substring)
    if any(files):
        raise ValueError(f"--compare must have two result files or two commits, got {a!r} and {b!r}")
    cases = select(device, substring)
    path = None if substring else results.path_of(output or results.default_folder(), device)

    def save(rows: list[Row]) -> None:
        if path is not None:
            results.save(path, device, "compare", about, rows)

    with results.environment() as about:
        about["compared"] = [_commit(name) for name in (a, b)]
        rows = _of_commits(a, b, cases, device, backend, seconds, save)
    save(rows)  # with the seconds that it took
    where = "not written: --case" if path is None else f"written: {path}, compare, after {about['seconds']:.0f} s"
    print(where, file=sys.stderr, flush=True)
    return _table(a, b, rows)


def of_files(a: Path, b: Path, substring: str = "") -> str:
    """Table of the cases that both files hold."""
    from amcl_fast.runs.reading import naming  # not above: a side of long ago has no such module

    times = []
    for path in (a, b):
        with naming(path):
            rows = results.load(path)["sections"].get("operators", {"rows": []})["rows"]
            times.append({row["case"]: 1.0 * row["runs"]["ours"]["median_ms"] for row in rows})
    shared = [name for name in times[0] if name in times[1] and substring.lower() in name.lower()]
    if not shared:
        raise ValueError(f"{a} and {b} share no case whose name contains {substring!r}")
    rows = []
    for name in shared:
        runs = {side: {"median_ms": of[name]} for side, of in zip("ab", times, strict=True)}
        rows.append({"case": name, "runs": runs, "ratio": times[0][name] / times[1][name]})
    return _table(a.stem, b.stem, rows)


def _of_commits(
    a: str, b: str, cases: list[Case], device: str, backend: str, seconds: float, save: Callable[[list[Row]], None]
) -> list[Row]:
    """The rows; `save` is called with those so far after every case."""
    with tempfile.TemporaryDirectory() as folder:
        sites = [_install(commit, Path(folder, str(number))) for number, commit in enumerate((a, b))]
        sides = [_Side(site, device, backend) for site in sites]
        try:
            rows = []
            for number, case in enumerate(cases, 1):
                rows.append({"case": case.name, "dtype": str(case.dtype_on(device)).removeprefix("torch.")})
                rows[-1] |= _in_turn(sides, case, seconds)
                print(f"[{number}/{len(cases)}] {_line(rows[-1])}", file=sys.stderr, flush=True)
                save(rows)
        finally:
            for side in sides:
                side.close()
    return rows


def _commit(name: str) -> str:
    return _run(f"check out {name!r}", "git", "rev-parse", "--verify", f"{name}^{{commit}}").strip()


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


def _run(step: str, *command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"could not {step}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


class _Side:
    """A process that measures one commit when it is asked to; a new one after it has ended."""

    def __init__(self, site: Path, device: str, backend: str) -> None:
        self._site, self._arguments = site, (device, backend, str(torch.get_num_threads()))
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: Any) -> Any:
        """The answer to a request: a case, or null for one more call. A str says why there is none."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROCESS, *self._arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self._site,
                env=os.environ | {"PYTHONPATH": str(self._site)},
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            return f"its process ended with exit code {self.close()}; its error is above"
        return json.loads(answer)

    def close(self) -> int | None:
        """End the process."""
        if (process := self._process) is None:
            return None
        self._process = None
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        return process.returncode


def _in_turn(sides: list[_Side], case: Case, seconds: float) -> Row:
    """`runs` and `ratio` of a row."""
    problems = [side.ask(dataclasses.asdict(case)) for side in sides]
    times: list[list[float]] = [[] for _ in sides]
    ready = [number for number, problem in enumerate(problems) if not problem]
    stop = time.monotonic() + seconds
    while ready and (time.monotonic() < stop or min(len(times[number]) for number in ready) < 3):
        for number in list(ready):
            found = sides[number].ask(None)
            if isinstance(found, str):
                problems[number] = found
                ready.remove(number)
            else:
                times[number].append(found)
    runs: Row = {
        name: {"failed": problem} if problem else dict(summary(values))
        for name, problem, values in zip("ab", problems, times, strict=True)
    }
    if any(problems):
        return {"runs": runs}
    ratio = summary([x / y for x, y in zip(*times, strict=True)])
    return {"runs": runs, "ratio": ratio["median_ms"], "ratio_q1": ratio["q1_ms"], "ratio_q3": ratio["q3_ms"]}


def serve(answers: TextIO, device: str, backend: str, threads: str) -> None:
    """Answer the requests of `_Side` that come from stdin."""
    from .timing import once

    torch.set_num_threads(int(threads))
    step: Callable[[], object] = lambda: None  # noqa: E731
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any
        try:
            if request is None:
                answer = once(step, device)
            else:
                step = lambda: None  # noqa: E731 (the tensors of the case before)
                step, answer = _prepared(Case(**request), device, backend)
        except Exception as failure:  # what this commit does not know is a line of the table
            answer = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
        print(json.dumps(answer), file=answers, flush=True)


def _prepared(case: Case, device: str, backend: str) -> tuple[Callable[[], object], str | None]:
    """A step of the case, which has run once, and why it must not be timed."""
    from .check import Oracle
    from .peers import implementation
    from .step import step_of

    dtype = case.dtype_on(device)
    run, oracle = implementation(backend, case), Oracle(case, device, dtype)
    error = oracle.error(run)
    if error > oracle.tolerance:
        return lambda: None, f"relative error {error:.1e}, tolerance {oracle.tolerance:.1e}; not timed"
    step = step_of(run, [case.operands(device, dtype, seed) for seed in range(2)])
    step()
    return step, None


def _cell(run: Row) -> str:
    return f"failed: {run['failed']}" if "failed" in run else f"{run['median_ms']:.3f}"


def _line(row: Row) -> str:
    ratio = f"; a / b {row['ratio']:.2f} ({row['ratio_q1']:.2f} – {row['ratio_q3']:.2f})" if "ratio" in row else ""
    return f"{row['case']}: {_cell(row['runs']['a'])} ms, {_cell(row['runs']['b'])} ms{ratio}"


def _table(a: str, b: str, rows: list[Row]) -> str:
    lines = [f"| case | {a}, ms | {b}, ms | {a} / {b} |", "|---|---|---|---|"]
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        lines.append(f"| {row['case']} | {_cell(row['runs']['a'])} | {_cell(row['runs']['b'])} | {ratio} |")
    return "\n".join(lines)
