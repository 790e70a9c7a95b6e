"""Files in which null, or a plain value, stands where the parser takes anything."""

import pytest

from amcl_fast.pretraining.command import SettingsError, settings_of


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("trainer: {max_steps: null}", "trainer.max_steps must be a whole number, got null"),
        ("data: {prefetch: null}", "data.prefetch must be a whole number, got null"),
        ("data: {root: null}", "data.root must be text, got null"),
        ("knn: {temperature: null}", "knn.temperature must be a number, got null"),
        ("trainer: 3", "trainer must be settings by name, got 3"),
        ("guard: null", "guard must be settings by name, got null"),
        ("report: [1]", r"report must be settings by name, got \[1\]"),
        ("checkpoint: '3'", "file.yaml: checkpoint must be settings by name, got 3"),
        ("model: {optimizer: null}", "model.optimizer must be settings by name, got null"),
        ("trainer: {profiler: '3'}", "trainer.profiler must be null, simple, .*, got 3"),
    ],
)
def test_is_told_by_its_name(given, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.yaml").write_text(f"base: demo\n{given}\n")
    with pytest.raises(SettingsError, match=f"^{told}$"):
        settings_of("file.yaml", [])


def test_is_taken_where_it_means_something(tmp_path):
    (tmp_path / "file.yaml").write_text("base: demo\ntrainer: {max_time: null}\ndata: {limit: null, held_out: null}\n")
    assert settings_of(str(tmp_path / "file.yaml"), [])["data"]["limit"] is None
