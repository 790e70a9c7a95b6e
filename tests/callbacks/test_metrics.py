import pytest

from amcl_fast.callbacks import MetricsFile


def lines(folder):
    return (folder / "metrics.csv").read_text().splitlines()


def test_columns_grow(tmp_path):
    log = MetricsFile(tmp_path)
    log.log_metrics({"loss": 1.5}, step=1)
    log.log_metrics({"knn": 40.0}, step=2)
    log.log_metrics({"loss": 0.5}, step=3)
    assert lines(tmp_path) == ["step,loss,knn", "1,1.5,", "2,,40.0", "3,0.5,"]


def test_resume_keeps_what_lies_before_it(tmp_path):
    log = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        log.log_metrics({"loss": float(step)}, step=step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1")  # of a killed run: the first character of "11,…"
    log = MetricsFile(tmp_path, resume_step=3)
    log.log_metrics({"loss": 9.0, "knn": 1.0}, step=3)
    assert lines(tmp_path) == ["step,loss,knn", "1,1.0,", "2,2.0,", "3,9.0,1.0"]


def test_a_new_run_never_writes_into_an_old_file(tmp_path):
    MetricsFile(tmp_path).log_metrics({"loss": 1.0}, step=1)
    with pytest.raises(FileExistsError, match="two runs never share a folder"):
        MetricsFile(tmp_path)
