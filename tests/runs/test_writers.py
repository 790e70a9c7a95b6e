"""Whatever writes a file or makes a folder does so by `amcl_fast.runs`, which follows no link; but for these few."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_OWN = {"amcl_fast/runs/files.py", "amcl_fast/runs/in_place.py"}
_USERS = "a folder that the user names, or the one above it"
_NEW = "in a folder that is new, under a name that nobody can foretell"
_NAMED_ONCE = "of a name that is refused where something has it"
_NAMELESS = "without a name, in memory"

EXCEPTIONS = {
    ("amcl_fast/callbacks/checkpoint.py", "mkdir"): _USERS,
    ("amcl_fast/callbacks/checkpoint.py", "save"): "into an open file",
    ("amcl_fast/callbacks/draw_report.py", "save"): "into memory",
    ("amcl_fast/data/cache.py", "mkdir"): _USERS,
    ("amcl_fast/data/cache.py", "utime"): "of a file that was read as one of the cache's",
    ("amcl_fast/data/convert.py", "makedirs"): _USERS,
    ("amcl_fast/data/convert.py", "symlink"): _NAMED_ONCE,
    ("amcl_fast/data/decoding/trial.py", "ftruncate"): _NAMELESS,
    ("amcl_fast/data/reading/reader_process.py", "ftruncate"): _NAMELESS,
    ("amcl_fast/data/shards/pack.py", "mkdir"): _USERS,
    ("amcl_fast/data/sources/builtin.py", "mkdir"): _NEW,
    ("amcl_fast/data/sources/builtin.py", "save"): _NEW,
    ("amcl_fast/data/sources/download.py", "mkdir"): _NEW,
    ("amcl_fast/data/sources/download.py", "rename"): _NAMED_ONCE,
    ("amcl_fast/data/sources/download.py", "save"): _NEW,
    ("amcl_fast/evaluate/command.py", "mkdir"): _USERS,
    ("amcl_fast/home.py", "gettempdir"): "whose owner and rights are looked at",
    ("amcl_fast/home.py", "mkdir"): _NAMED_ONCE,
    ("amcl_fast/hub.py", "mkdir"): _USERS,
    ("amcl_fast/report/compare.py", "mkdir"): _USERS,
    ("amcl_fast/runs/arrays.py", "savez_compressed"): "into an open file",
    ("amcl_fast/runs/directory.py", "mkdir"): _USERS,
    ("amcl_fast/runs/lock.py", "flock"): "of what in_place.py has opened",
    ("amcl_fast/runs/lock.py", "ftruncate"): "of what in_place.py has opened",
    ("amcl_fast/study/folder.py", "mkdir"): _USERS,
    ("amcl_fast/terminal.py", "open"): "/dev/null",
    ("benchmarks/collapse/pool.py", "save"): _NEW,
    ("benchmarks/compare.py", "copytree"): _NEW,
    ("benchmarks/gpu/run.py", "mkdir"): _USERS,
    ("benchmarks/gpu/sweep.py", "mkdir"): _USERS,
    ("benchmarks/measure/pipeline.py", "gettempdir"): "in which a folder is made that is new",
    ("benchmarks/measure/pipeline.py", "open"): _NEW,
    ("benchmarks/measure/scale/first_step.py", "write_text"): _NEW,
    ("benchmarks/measure/scale/rehearsal.py", "open"): _NEW,
    ("benchmarks/measure/scale/tree.py", "copyfile"): _NEW,
    ("benchmarks/measure/scale/tree.py", "gettempdir"): "in which a folder is made that is new",
    ("benchmarks/measure/scale/tree.py", "link"): _NEW,
    ("benchmarks/measure/scale/tree.py", "mkdir"): _NEW,
    ("benchmarks/measure/scale/tree.py", "save"): _NEW,
    ("benchmarks/results.py", "mkdir"): _USERS,
    ("benchmarks/show/plots.py", "mkdir"): _USERS,
    ("benchmarks/show/plots.py", "savefig"): "into an open file",
    ("benchmarks/show/studies.py", "mkdir"): _USERS,
    ("benchmarks/system.py", "write_text"): "of /proc",
}
"""Calls, by file and name, to why they may be there."""

_ALWAYS = {
    *("write_text", "write_bytes", "touch", "mkdir", "makedirs", "rename", "renames", "utime", "truncate", "ftruncate"),
    *("symlink", "symlink_to", "link", "hardlink_to", "copyfile", "copytree", "copy2", "move", "flock", "lockf"),
    *("gettempdir", "mkstemp", "mktemp", "NamedTemporaryFile", "savez", "savez_compressed", "save_file", "tofile"),
    *("chmod", "chown", "mkfifo", "mknod", "copymode", "copystat", "extractall", "unpack_archive", "savetxt"),
    *("FileHandler", "SummaryWriter", "urlretrieve", "download_url_to_file", "export_chrome_trace"),
}
_MODE = r"'[rbt+]*[wax+][rwabtx+]*([:|]\w*)?'"
_SOMETIMES = {
    # A mode or flags that cannot be seen here may be for writing.
    "open": rf"{_MODE}|\bO_(?!RDONLY|CLOEXEC|NO|DIR)|^os\.open\((?!.*O_RDONLY)|\bmode=[^']|^open\([^,]+, \w+[,)]",
    "ZipFile": rf"{_MODE}|\bmode=[^']",
    "TarFile": rf"{_MODE}|\bmode=[^']",
    "copy": r"^shutil\.",
    "replace": r"^os\.|^[^(]+\((?!\w+=)[^,]*\)$",  # a path's has one argument, a text's two
    "save": r"^(torch|np|numpy|Image)\b|/",  # of pictures, to a path
    "savefig": r"^(?!.*\bbuffer\b)",
    "dump": r"^(json|yaml|pickle|torch)\.",
    "memmap": r"'[wr]\+'",
    "open_memmap": r"'[wr]\+'",
}
"""Writing, if the call reads so."""


def writing(source):
    """Names of what is called in a source, or given away to be called, that writes by a path."""
    nodes = [*ast.walk(ast.parse(source))]
    called = {node.func for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        of = node.func if isinstance(node, ast.Call) else node
        if of is not node or (isinstance(node, ast.Attribute) and node not in called):
            name = getattr(of, "attr", getattr(of, "id", None))
            if name in _ALWAYS or (name in _SOMETIMES and re.search(_SOMETIMES[name], ast.unparse(node))):
                yield name


WRITING = {
    "write_text": "p.write_text(t); partial(p.write_text, t)",
    "open": "open(p, 'w'); p.open('ab'); os.open(p, os.O_RDWR); os.open(p, flags); tarfile.open(p, 'w:'); open(p, m)",
    "replace": "os.replace(a, b); partial(os.replace, a); path.replace(place)",
    "save": "torch.save(x, p); partial(torch.save, x); np.save(p, x); picture.save(folder / 'a.png')",
    "copy": "shutil.copy(a, b)",
    "ZipFile": "zipfile.ZipFile(p, 'w')",
    "chmod": "p.chmod(0o600); os.chmod(p, 0o600)",
}


@pytest.mark.parametrize("name", WRITING)
def test_what_writes_is_known(name):
    for call in WRITING[name].split("; "):
        assert [*writing(call)] == [name], call


def test_what_does_not_write_is_known():
    calls = "open(p); p.open('rb'); os.open(p, os.O_RDONLY); t.replace(a, b); callback.save(trainer); replace(x, a=1)"
    assert not [*writing(f"{calls}; open(p, 'rb', closefd=False); image.copy(); zipfile.ZipFile(file); self.save")]


def test_no_other_source_writes_by_a_path():
    paths = [path for folder in ("amcl_fast", "kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    found = {(str(path.relative_to(ROOT)), name) for path in paths for name in writing(path.read_text())}
    assert {call for call in found if call[0] not in _OWN} == EXCEPTIONS.keys()
