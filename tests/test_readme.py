"""What the README shows trains, and what it warns of does not."""

import re
from itertools import chain, islice, repeat
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amcl_fast import AdaptiveTemperature, SimCLRLoss, diagnose
from amcl_fast.data import Augmentation, ContrastiveLoader, EvaluationLoader
from amcl_fast.data.graph import Output
from amcl_fast.data.scan.classes import scan_classes
from amcl_fast.data.sources import builtin
from amcl_fast.evaluate import encode, knn_accuracy
from amcl_fast.models import BackboneConfig, build_backbone

README = Path(__file__).parents[1] / "README.md"
GENERATED = re.compile(r"<!-- benchmarks: begin -->.*<!-- benchmarks: end -->", re.DOTALL)
BATCH, STEPS = 128, 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A part of the built-in images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin, "SPLITS", {"train": 200, "test": 50})
        return builtin.prepare_builtin(tmp_path_factory.mktemp("cache"))


class Run:
    """A ResNet-18 of width 16 with a two-layer head without BatchNorm, and what is to be known of it."""

    def __init__(self, folder):
        torch.manual_seed(0)
        output = Output(32, BATCH, num_threads=1)
        loader = ContrastiveLoader(scan_classes(folder / "train"), [Augmentation()] * 2, output)
        self.batches = islice(chain.from_iterable(repeat(loader)), STEPS)
        (self.views, _) = next(iter(loader))
        self.images = [EvaluationLoader(scan_classes(folder / split), output) for split in ("train", "test")]
        self.backbone = build_backbone(BackboneConfig("resnet18", "standard", 16))
        self.model = nn.Sequential(self.backbone, nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 128))

    def cosine(self):
        """Mean over all pairs of projections of a batch."""
        with torch.no_grad():
            z = F.normalize(torch.cat([self.model(view) for view in self.views]), dim=-1)
        n = len(z)
        return ((z @ z.T).sum().item() - n) / (n * (n - 1))

    def knn(self):
        """In percent; chance is 10."""
        bank, queries = (encode(self.backbone, images, "cpu") for images in self.images)
        return knn_accuracy(*bank, *queries, k=50, num_classes=10)


def test_it_is_short():
    """130 lines with what is generated, which has 16 of them at the most."""
    assert len(GENERATED.sub("", README.read_text()).splitlines()) <= 130 - 16 + 1


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_the_loop_of_the_readme_trains(folder):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    run = Run(folder)
    untrained = run.knn()
    names = {"model": run.model, "loader": run.batches}
    exec(code, names)  # as it stands
    assert run.cosine() < 0.8
    assert run.knn() > untrained + 3
    assert names["criterion"].last_stats and diagnose(names["criterion"]) == []


@pytest.mark.slow
def test_the_hardest_negatives_alone_collapse_and_are_found(folder):
    """The same loop with the form that the README warns of."""
    run = Run(folder)
    temperature = AdaptiveTemperature(128, tau_min=0.1, tau_max=1.0, score="cosine")
    criterion = SimCLRLoss(temperature, negatives="topk_softmax", top_k=100)
    optimizer = torch.optim.SGD([*run.model.parameters(), *criterion.parameters()], lr=0.06, momentum=0.9)
    for (first, second), _ in run.batches:
        loss = criterion(run.model(first), run.model(second))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert run.cosine() > 0.98
    assert [finding.kind for finding in diagnose(criterion)] == ["projections"]
