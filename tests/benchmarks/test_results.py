import json
import os
import time

import pytest

from benchmarks import results
from tests.helpers.benchmarks.schema import check_schema
from tests.helpers.benchmarks.tiny import document


def test_saved_document_has_the_schema(tmp_path):
    check_schema(document())
    with results.environment() as about:
        time.sleep(0.01)
    path = results.path_of(tmp_path, "cpu")
    results.save(path, "cpu", "operators", about, [{"case": "a"}])
    results.save(path, "cpu", "scaling", about, [])
    found = json.loads(path.read_text())
    check_schema(found)
    assert found["sections"]["operators"]["rows"] == [{"case": "a"}]
    assert found["machine"]["cores"] == os.cpu_count()
    assert 0 <= about["elsewhere"] <= 1
    assert list(tmp_path.iterdir()) == [path]


def test_committed_documents_have_the_schema():
    for found in results.load_all(results.Path(results.__file__).parent / "results"):
        check_schema(found)


def test_a_file_is_what_json_makes_of_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document()))
    rows = [{"µs": [1.5, (2, {})], "nan": float("nan"), "of": {"a\nb": []}, 1: None}, {}, {"\0training": "\0training"}]
    results.save(path, "cpu", "training", {"empty": {}}, rows)
    results.save(path, "cpu", "without", {}, [])
    assert path.read_text() == json.dumps(json.loads(path.read_text()), indent=1, ensure_ascii=False) + "\n"
    assert repr(results.load(path)["sections"]["training"]["rows"]) == repr(json.loads(json.dumps(rows)))


def test_a_section_replaces_itself_and_leaves_the_others(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document()))
    results.save(path, "cpu", "training", {}, [{"new": 1}])
    found = results.load(path)
    assert found["sections"]["training"]["rows"] == [{"new": 1}]
    assert found["sections"]["operators"] == document()["sections"]["operators"]


def test_other_documents_are_refused(tmp_path):
    (tmp_path / "study.json").write_text('{"what": "something else"}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "z.json").write_text(json.dumps(document()))
    with pytest.raises(ValueError, match=r"study.json must hold benchmark results of schema 1, got None"):
        results.load(tmp_path / "study.json")
    (tmp_path / "cut.json").write_text(json.dumps(document())[:-100])
    with pytest.raises(ValueError, match=r"cut.json must hold benchmark results of schema 1, got no JSON: "):
        results.load(tmp_path / "cut.json")
    (tmp_path / "empty.json").write_text('{"schema": 1}')
    with pytest.raises(ValueError, match=r"empty.json must hold benchmark results in sections, got None"):
        results.load(tmp_path / "empty.json")
    with pytest.raises(ValueError, match=r"cut.json must hold"):
        results.load_all(tmp_path)
    (tmp_path / "cut.json").unlink()
    assert results.load_all(tmp_path) == [document()]


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert results.default_folder() == results.Path()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    assert results.default_folder() == results.Path("benchmarks/results")


def test_a_loud_machine_is_told(monkeypatch, capsys):
    monkeypatch.setattr(results.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    with results.environment() as about:
        pass
    assert about["load"] == 99.0
    assert "this machine is not quiet: load average 99.0" in capsys.readouterr().err
