import json
import sys
from types import SimpleNamespace

import pytest

from amcl_fast.models import BackboneConfig
from benchmarks.measure import views


@pytest.mark.parametrize("layout", views.LAYOUTS)
def test_layouts_have_equally_many_pixels(layout):
    pixels = sum(view[:, 0].numel() for view in views.views_of(layout, 28, 16))
    assert pixels == 2 * 28 * 16 * 16


def test_a_number_of_images_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch must be a multiple of 14, got 16"):
        views.images_of("2 + 6", 16)


@pytest.mark.parametrize("kind", views.KINDS)
@pytest.mark.parametrize("framework", list(views.PREDICTED)[1:])
def test_a_step_trains(framework, kind, monkeypatch):
    made, build = [], views.method
    monkeypatch.setattr(views, "method", lambda *given: made.append(build(*given)) or made[-1])
    step = views.step_of(framework, kind, "2 + 6", 14, 16, BackboneConfig("resnet18", "small", 8))
    before = [p.detach().clone() for p in made[0].parameters()]
    step()
    assert all((p != old).any() for p, old in zip(made[0].parameters(), before, strict=True))


def test_ratios_are_of_the_same_round(monkeypatch):
    """Of a machine that slows down, where the ratio of medians would be of different rounds."""
    durations, now = iter([1, 2, 2, 8, 4, 12]), [0.0]

    def step():
        now[0] += next(durations)

    clock = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: now[0] / 2)
    monkeypatch.setattr(views, "time", clock)
    found = views.measure({"2": step, "4": step}, 2)  # the first step of each is not counted
    assert found["4"]["ratio"] == found["4"]["processor_ratio"] == (4 + 3) / 2 and found["2"]["ratio"] == 1
    assert found["4"]["median_ms"] == 10_000 and found["4"]["processor_ms"] == 5_000


def test_it_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    path = tmp_path / "views.json"
    given = ["--frameworks", "SimSiam", "--rounds", "1", "--batch", "14", "--size", "16", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", ["views", *given])
    monkeypatch.setattr(views, "BackboneConfig", lambda name: BackboneConfig(name, "small", 8))
    views.main()
    document = json.loads(path.read_text())
    assert [(row["kind"], row["layout"], row["images"]) for row in document["rows"]] == [
        (kind, layout, images) for kind in views.KINDS for layout, images in (("2", 14), ("4", 7), ("2 + 6", 8))
    ]
    assert document["rows"][0]["ratio"] == document["rows"][0]["processor_ratio"] == 1
    assert document["environment"]["commit"] and document["predicted"] == views.PREDICTED
    assert views.table(document["rows"]) in capsys.readouterr().out
