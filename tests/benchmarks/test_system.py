"""What the system says of the machine."""

from pathlib import Path

import pytest

from amcl_fast.benchmarks import system


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("0::/jobs/one", {"memory.max": "300", "memory.current": "200", "memory.stat": "anon 5\ninactive_file 50\n"}),
        (
            "4:memory:/jobs/one",
            {
                "memory/memory.limit_in_bytes": "300", "memory/memory.usage_in_bytes": "200",
                "memory/memory.stat": "total_inactive_file 50\n",
            },
        ),
    ],
)  # fmt: skip
def test_the_limit_of_a_group_counts(tmp_path, monkeypatch, line, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    read = Path.read_text
    monkeypatch.setattr(system, "_GROUPS", tmp_path)
    monkeypatch.setattr(Path, "read_text", lambda path: line if str(path) == "/proc/self/cgroup" else read(path))
    assert system.memory_free("cpu") == 150


def test_the_file_system_of_a_folder():
    assert system.file_system(Path("/proc/self")) == "proc"
