import pytest

from benchmarks.cases import CASES
from benchmarks.gpu import predictions
from benchmarks.gpu.predictions import PREDICTIONS, Prediction, table
from benchmarks.gpu.whole import cases
from tests.helpers.benchmarks.tiny import ENVIRONMENT, document


def machine():
    found = document()
    found["machine"]["name"] = "GPU"
    early, late = (ENVIRONMENT | {"date": f"2026-0{month}-01T00:00:00+00:00"} for month in (1, 3))
    kernels = [{"name": "_maxima", "calls": 2, "us": 120.0}]
    row = {"case": "a", "run": "ours", "kernels": kernels, "busy_ms": 2.0, "graph_ms": None}
    found["sections"]["breakdown-0123456"] = {"environment": early, "rows": [row]}
    kernels = [{"name": "_select_maxima", "calls": 2, "us": 110.0}]
    row = row | {"case": "a, one table", "kernels": kernels, "busy_ms": 1.2}
    found["sections"]["breakdown"] = {"environment": late, "rows": [row | {"run": "dense", "busy_ms": 9.0}, row]}
    return found


def one(**changes):
    given = {
        "device": "GPU", "written": "2026-02-01T00:00:00+00:00", "section": "breakdown",
        "row": ("a, one table", "ours"), "value": "busy_ms", "low": 1.0, "high": 1.1, "basis": "a guess",
    }  # fmt: skip
    return Prediction(**given | changes)


def test_what_was_measured_before_and_after():
    assert one().measured(machine()) == (2.0, 1.2)
    assert one(value="_select_maxima").measured(machine()) == (0.12, 0.11)
    assert one(value="_nosuch").measured(machine()) == (None, None)
    assert one(value="graph_ms").measured(machine()) == (None, None)
    assert one(row=("a, one table", "dense")).measured(machine()) == (None, 9.0)
    timed = one(section="operators", row=("SimCLR", ""), value="dense/ours", written="2020")
    assert timed.measured(machine()) == (None, 5.0)
    assert one(section="operators", row=("SimCLR", ""), value="compiled", written="2020").measured(machine()) == (
        None,
        None,
    )


def test_table(monkeypatch):
    monkeypatch.setattr(
        predictions, "PREDICTIONS", (one(), one(low=1.15, high=1.15), one(low=2, high=3), one(value="_select_bits"))
    )
    lines = table(machine()).splitlines()[2:]
    assert lines == [
        "| a, one table: busy, ms | 2 | 1 – 1.1 | 1.2 | 1.09 × the upper end | a guess | 2026-02-01 |",
        "| a, one table: busy, ms | 2 | 1.15 | 1.2 | as predicted | a guess | 2026-02-01 |",
        "| a, one table: busy, ms | 2 | 2 – 3 | 1.2 | 0.60 × the lower end | a guess | 2026-02-01 |",
        "| a, one table: `_select_bits`, ms | – | 1 – 1.1 | – | – | a guess | 2026-02-01 |",
    ]
    with pytest.raises(ValueError, match="no predictions for 'Some Processor 1'"):
        table(document())


def test_predictions_are_of_rows_that_there_will_be():
    rows = {case.name for case in CASES} | set(cases())
    for prediction in PREDICTIONS:
        assert prediction.row[0] in rows and prediction.low <= prediction.high
        assert prediction.section in ("breakdown", "losses", "operators", "resnet50")
