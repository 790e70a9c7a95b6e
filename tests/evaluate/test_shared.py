"""Evaluations whose rows several processes hold, against one process that holds all; errors of one end all."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from amcl_fast.distributed import ElsewhereError, exchange, in_step, share, together
from amcl_fast.evaluate import (
    FineTuning,
    ShuffledFeatures,
    encode,
    evaluate,
    features,
    fine_tune,
    fine_tuning,
    knn,
    knn_accuracy,
    linear,
    linear_probe,
)
from amcl_fast.evaluate.ridge import ridge_probe
from amcl_fast.study.measured import recalibrated
from tests.helpers.processes import end_group, spawn

CLASSES, WIDTH = 12, 8
RATES = (0.03, 0.1, 1.0, 3.0, 10.0)
PROBE = {"num_classes": CLASSES, "rates": RATES, "epochs": 2, "batch_size": 32}
# Rows of bank and of queries in each process.
SHARES = {"even": ([300, 300], [60, 60]), "uneven": ([401, 199], [3, 117]), "none": ([600, 0], [0, 120])}
BATCHES = [3, 19]


def rows(count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) * CLASSES // count
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return (centres[labels] + torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)).to(dtype), labels


def start(rank, world_size, store):
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    torch.set_num_threads(1)


def measured(bank, queries, shared):
    knn = {
        (k, chunk): knn_accuracy(*bank, *queries, k=k, num_classes=CLASSES, chunk=chunk, shared=shared)
        for k, chunk in ((1, None), (20, 7), (450, None), (10_000, 50))
    }
    half = [(features.half(), labels) for features, labels in (bank, queries)]
    knn["half"] = knn_accuracy(*half[0], *half[1], k=20, num_classes=CLASSES, shared=shared)
    # The second time there are more processes than rates.
    probes = [
        linear_probe(ShuffledFeatures(*bank, 32, shared=shared), *queries, shared=shared, **{**PROBE, "rates": rates})
        for rates in (RATES, RATES[:1])
    ]
    return knn, [(probe.weight, probe.bias, probe.top1, probe.top5, probe.best) for probe in probes]


def images(count, seed):
    features, labels = rows(count, seed, torch.float32)
    return features.view(count, 2, 2, 2), labels


def backbone():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 5, 2), torch.nn.BatchNorm2d(5), torch.nn.Flatten())


def batches(data, size):
    return list(zip(*(part.split(size) for part in data), strict=True))


def evaluated(bank, queries, augmented, shared):
    found = evaluate(
        backbone(), bank, queries, augmented=augmented, k=9, shared=shared, dtype=torch.float16, **PROBE
    )  # fmt: skip
    return found.as_dict()


def tuned(train, queries, shared):
    """Without batch normalisation, which sees a part of each batch."""
    settings = FineTuning(rates=(0.03, 0.1), epochs=3)
    module = torch.nn.Sequential(*list(backbone())[::2])
    found = fine_tune(
        module, lambda: train, queries, settings, num_classes=CLASSES, batch_size=32, shared=shared
    )  # fmt: skip
    return found.top1, found.encoder, found.weight, found.queries


def own_part(data, sizes, rank):
    return tuple(part.split(sizes)[rank] for part in data)


def worker(rank, world_size, store, results):
    start(rank, world_size, store)
    found = {
        name: measured(own_part(rows(600, 1), bank, rank), own_part(rows(120, 2), queries, rank), True)
        for name, (bank, queries) in SHARES.items()
    }
    # Of parts of whole tens, what both hold out is what one process does.
    found["ridge"] = [
        tuple(
            ridge_probe(
                *own_part(rows(600, 1), SHARES[name][0], rank),
                *own_part(rows(120, 2), SHARES[name][1], rank),
                num_classes=CLASSES,
                shared=True,
            )
        )
        for name in ("even", "none")
    ]
    module = backbone().eval()
    part = own_part(images(40, 3), [30, 10], rank)[0]
    found["recalibrated"] = recalibrated(module, part, "cpu", 10)(images(7, 4)[0]).detach()
    found["encoded"] = encode(backbone(), batches(own_part(images(40, 3), [9, 31], rank), 1), "cpu", shared=True)
    # One process has no image at all.
    none = [] if rank else batches(images(120, 2), 32)
    halves = [tuple(part.chunk(2)[rank] for part in batch) for batch in batches(images(96, 5), 32)]
    parts = (batches(own_part(images(600, 1), [300, 300], rank), 64), none, halves)
    found["evaluated"] = evaluated(*parts[:2], None, True), evaluated(*parts, True)
    found["tuned"] = tuned(halves, none, True)
    torch.save(found, results / f"{rank}.pt")
    errors(rank)
    end_group()


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_measure_what_one_does(tmp_path):
    spawn(worker, args=(2, os.fspath(tmp_path / "store"), tmp_path), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    knn, probe = measured(rows(600, 1), rows(120, 2), False)
    assert len(set(knn.values())) > 2 and 30 < knn[20, 7] < 99
    for name in SHARES:
        for by_rank in found:
            assert by_rank[name][0] == knn, name
            torch.testing.assert_close(by_rank[name][1], probe, rtol=1e-9, atol=1e-12)
    expected = ridge_probe(*rows(600, 1), *rows(120, 2), num_classes=CLASSES)
    assert all(by_rank["ridge"] == [expected] * 2 for by_rank in found)
    # Four batches of ten, three of them of the first process.
    module, parts = backbone().eval(), images(40, 3)[0].split([30, 10])
    convolved = [module[0](batch).squeeze() for batch in (*(parts[0][place::3] for place in range(3)), parts[1])]
    mean, variance = (torch.stack([of(batch) for batch in convolved]).mean(0) for of in (_mean, _variance))
    expected = (module[0](images(7, 4)[0]).squeeze() - mean) / (variance + 1e-5).sqrt()
    for by_rank in found:
        torch.testing.assert_close(by_rank["recalibrated"], expected)
    features, labels = encode(backbone(), batches(images(40, 3), 7), "cpu")
    torch.testing.assert_close(torch.cat([by_rank["encoded"][0] for by_rank in found]), features)
    assert torch.equal(torch.cat([by_rank["encoded"][1] for by_rank in found]), labels)
    bank, queries, augmented = (batches(images(*of), 32) for of in ((600, 1), (120, 2), (96, 5)))
    expected = evaluated(bank, queries, None, False), evaluated(bank, queries, augmented, False)
    assert expected[0]["linear"]["sweep"] != expected[1]["linear"]["sweep"]
    assert found[0]["evaluated"] == found[1]["evaluated"] == expected
    expected = tuned(augmented, queries, False)
    for by_rank in found:
        torch.testing.assert_close(by_rank["tuned"], expected, rtol=1e-4, atol=1e-6)


def _mean(batch):
    return batch.mean(0)


def _variance(batch):
    return batch.var(0)


def failing(count, at):
    for number in range(count):
        if number == at:
            raise OSError(f"cannot read {number}")
        yield number


def probe_of(bank, queries, epochs):
    return linear_probe(ShuffledFeatures(*bank, 4, shared=True), *queries, shared=True, **{**PROBE, "epochs": epochs})


def errors(rank):
    """What is wrong in one process is an error in both."""
    bank, queries = rows(20, 1), rows(8, 2)
    told = [pytest.raises(ElsewhereError, match="bank must be finite"), pytest.raises(ValueError, match="be finite")]
    broken = bank[0].clone().fill_(float("nan" if rank else 1)), bank[1]
    with told[rank]:
        knn_accuracy(*broken, *queries, num_classes=CLASSES, shared=True)
    with pytest.raises(ValueError, match="bank must have at least one row, got none"):
        knn_accuracy(bank[0][:0], bank[1][:0], *queries, num_classes=CLASSES, shared=True)
    with pytest.raises(ValueError, match=r"width of features, got \[7, 8\]"):
        knn_accuracy(bank[0][:, rank:], bank[1], queries[0][:, rank:], queries[1], num_classes=CLASSES, shared=True)
    wrong = queries[1] + 50 * rank
    told = [pytest.raises(ElsewhereError, match="query_labels"), pytest.raises(ValueError, match="query_labels")]
    with told[rank]:
        linear_probe(ShuffledFeatures(*bank, 4, shared=True), queries[0], wrong, shared=True, **PROBE)
    train = ShuffledFeatures(*broken, 4, shared=True)
    told = [pytest.raises(ValueError, match="train must be finite"), pytest.raises(ElsewhereError, match="be finite")]
    with told[rank]:
        linear_probe(train, *queries, shared=True, **PROBE)

    # What fails between two collectives, for lack of memory say.
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("no memory")

    def at_step_70(self, *arguments, usual=linear._Classifiers.step):
        out_of_memory() if self._done == 70 else usual(self, *arguments)

    told = [pytest.raises(ElsewhereError, match="no memory"), pytest.raises(torch.OutOfMemoryError, match="no memory")]
    some = batches(images(9, 1), 2)
    for owner, name, fails, work in (
        (knn._Nearest, "look", out_of_memory, lambda: knn_accuracy(*bank, *queries, num_classes=CLASSES, shared=True)),
        (linear._Classifiers, "step", at_step_70, lambda: probe_of(bank, queries, epochs=20)),
        (linear, "_hits", out_of_memory, lambda: probe_of(bank, queries, epochs=1)),
        (fine_tuning.F, "cross_entropy", out_of_memory, lambda: tuned(some[:4], some, True)),
        (features._Rows, "add", out_of_memory, lambda: encode(backbone(), some, "cpu", shared=True)),
    ):
        with pytest.MonkeyPatch.context() as patch, told[rank]:
            if rank:
                patch.setattr(owner, name, fails)
            work()
    # One ends long before the other, which then fails.
    taken = []
    told = [pytest.raises(ElsewhereError, match="cannot read 30"), pytest.raises(OSError, match="cannot read 30")]
    with told[rank]:
        taken.extend(in_step(range(2) if rank == 0 else failing(40, 30)))
    with pytest.raises(ElsewhereError if rank else KeyError, match="0 failed"), together():
        raise KeyError(f"{rank} failed")  # both have: one tells
    met = []
    assert list(in_step(range(BATCHES[rank]), lambda: met.append(exchange(rank)))) == list(range(BATCHES[rank]))
    assert met == [[0, 1]] * len(met) and len(met) > 1
    with pytest.raises(ValueError, match="loader yields no batch"):
        encode(backbone(), [], "cpu", shared=True)


def test_shares_are_all_rows_once_and_as_even_as_can_be():
    for count, world_size in ((10, 3), (2, 5), (1_281_167, 512)):
        parts = [share(count, rank, world_size) for rank in range(world_size)]
        assert [first for first, _ in parts] == [0, *(end for _, end in parts[:-1])] and parts[-1][1] == count
        sizes = {end - first for first, end in parts}
        assert max(sizes) - min(sizes) <= 1
