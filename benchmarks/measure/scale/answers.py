"""What a process of `bench scale` measures: a data set's start, kNN, a linear probe.

As the module of a process it answers one request: JSON on stdin, JSON as the last line of stdout.
"""

import gc
import json
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice, repeat
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ...system import cores, memory, reset_peak

CLASSES = 1_000
K = 200
BATCH = 256
"""Of a linear probe."""

SIZE, IMAGES = 224, 64
"""Pixels and images of a loader's batch."""

# Rows of the bank in a tile of the bare product: the fastest of 1,024 to 65,536 for 200 to 1,000 queries.
_TILE = 4096
# Rows of random features that are made at a time.
_BLOCK = 1 << 16
# Queries whose votes are compared with float64, and rows of the bank for that.
_CHECKED, _CHECKED_ROWS = 16, 1 << 18
# Tiles of the bank with which a whole pass's memory is measured: the first, and one that is merged with it.
_TILES = 2
# Of a linear probe, timed steps and those before them, at the least.
_BLOCKS = 6
# Of the time of a kNN measurement: kNN and the product, a little faster, of a part of the bank and of a third of it.
_SHARES = 4 / 3 * (1 + 0.8)


def _start(request: dict[str, Any]) -> dict[str, Any]:
    """A data set's start as a run has it: `prepare_data` in the first process, then `setup` in all.

    Of the request: `root`; `loads`, whether a loader is measured too.
    """
    from amcl_fast.data import ContrastiveDataModule

    data = ContrastiveDataModule(
        request["root"],
        size=SIZE,
        batch_size=IMAGES,
        augmentation="abcde",
        num_threads=cores(),
        device="cpu",
    )
    gc.collect()
    _agreed(0)
    before, started = memory(), time.perf_counter()
    if not request["rank"]:
        data.prepare_data()
    prepared = time.perf_counter()
    _agreed(0)
    begun = time.perf_counter()
    data.setup("fit")
    ready = time.perf_counter()
    gc.collect()
    answer: dict[str, Any] = {
        "images": data.num_train,
        "prepare": prepared - started,
        "waiting": begun - prepared,
        "setup": ready - begun,
        "before": before,
        "after": memory(),
    }
    if request["loads"]:
        answer |= _loader(data)
    return answer


def _loader(data: Any) -> dict[str, Any]:
    started = time.perf_counter()
    loader = data.train_dataloader()
    made = time.perf_counter()
    batches = chain.from_iterable(repeat(loader))
    next(batches)
    first = time.perf_counter()
    state, seconds = None, []
    for _ in range(4):
        begin = time.perf_counter()
        state = loader.state_dict()
        seconds.append(time.perf_counter() - begin)
        next(batches)
    return {
        "loader": made - started,
        "first_batch": first - made,
        "state": seconds[0],
        "state_again": statistics.median(seconds[1:]),
        "state_bytes": len(pickle.dumps(state)),
        "loading": memory(),
    }


class _Features:
    """Random features with class structure: the mean of a class, the same in every process, and noise.

    A row's cosine with its class is about 0.9/√d, so that of 1,281 members of its class a handful are among its 200
    nearest rows of 1.28 million: kNN is neither all right nor all wrong.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: str) -> None:
        self._means = torch.empty(CLASSES, width)
        self._means.normal_(generator=torch.Generator().manual_seed(0)).mul_((0.9 / width**0.5) ** 0.5)
        self._dtype, self._device = dtype, device

    def rows(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """(count, d) features and (count,) labels, evenly over the classes."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % CLASSES
        features = torch.empty(count, self._means.shape[1], dtype=self._dtype, device=self._device)
        for some, of in zip(features.split(_BLOCK), labels.split(_BLOCK), strict=True):
            some.copy_(torch.empty(some.shape).normal_(generator=generator).add_(self._means[of]))
        return features, labels.to(self._device)


def _knn(request: dict[str, Any]) -> dict[str, Any]:
    """kNN beside the bare product of the same shapes; the bank is shared by the processes.

    Of the request: `rows` of the bank, `width`, `dtype`, `device`; `queries`, a number, which are compared with the
    whole bank, or null: as many as kNN takes at a time, `most` at the most, with as much of the bank as takes about
    `seconds`, and with a third of that. Parts are every n-th row, so that those of a tile are as far apart as in the
    whole.
    """
    from amcl_fast.evaluate import knn_accuracy
    from amcl_fast.evaluate.knn import _ON_CPU, _ON_GPU

    rank, processes, device = request["rank"], request["processes"], request["device"]
    tile, _, per_pass = _ON_GPU if device == "cuda" else _ON_CPU
    features = _Features(request["width"], getattr(torch, request["dtype"]), device)
    bank, labels = features.rows(_share(request["rows"], request), seed=1 + rank)
    settings = {"k": min(K, request["rows"]), "num_classes": CLASSES}
    shared = processes > 1
    _reset_peak(device)
    before = _peak(device)

    def knn(rows: slice, count: int) -> dict[str, float]:
        """kNN of so many queries, of all processes, with some rows of this process's bank."""
        own, of = features.rows(_share(count, request), seed=-3 - rank)
        _reset_peak(device)
        _agreed(0)
        started, processor = time.perf_counter(), time.process_time()
        accuracy = knn_accuracy(bank[rows], labels[rows], own, of, shared=shared, **settings)
        return {
            "queries": count,
            "rows": len(labels[rows]),
            "knn": time.perf_counter() - started,
            "knn_processor": time.process_time() - processor,
            "accuracy": accuracy,
            "beyond": _peak(device) - before,
        }

    # The most memory: of all the queries of a pass. It takes no more for more tiles of the bank.
    count = min(per_pass, request["most"])
    whole_pass = knn(slice(_TILES * tile), count)
    error = 0.0
    if processes == 1:
        data = bank[:_CHECKED_ROWS], labels[:_CHECKED_ROWS], *features.rows(_CHECKED, seed=-1)
        error = abs(knn_accuracy(*data, **settings) - _exact(*data, settings["k"]))
    steps = [1]
    if request["queries"] is not None:
        count = request["queries"]
    else:
        # Tiles after the first ones, in which fewer rows are near enough, take less.
        some = request["seconds"] / _SHARES * whole_pass["rows"] / whole_pass["knn"]
        step = round(_agreed(max(1, len(bank) // max(1, round(some)))))
        while step % 2 == 0 or step % 5 == 0:  # rows of all classes
            step += 1
        steps = [3 * step, step] if step > 1 else [1]
    timed = []
    for step in steps:
        queries, _ = features.rows(count, seed=-2)
        _agreed(0)
        product = _in_tiles(queries, bank[: -(-len(bank) // step)])
        del queries
        timed.append(knn(slice(None, None, step), count) | product)
    return {
        "timed": timed,
        "whole_pass": whole_pass,
        "rows": len(bank),
        "error": error,
        "checked": _CHECKED,
        "bank_bytes": bank.nbytes,
    }


def _probe(request: dict[str, Any]) -> dict[str, Any]:
    """Steps of a linear probe on features that are shared by the processes.

    Of the request: `rows`, `width`, `dtype`, `device`; `seconds` that the steps may take.

    Steps are timed in blocks, for processes gather the rows of several batches at a time. The first block, with the
    order of all rows in it, is none of them, and there are never more steps than an epoch has.
    """
    from amcl_fast.evaluate.linear import _GATHERED, RATES, ShuffledFeatures, linear_probe

    shared, device = request["processes"] > 1, request["device"]
    features = _Features(request["width"], getattr(torch, request["dtype"]), device)
    train = ShuffledFeatures(
        *features.rows(_share(request["rows"], request), seed=1 + request["rank"]), BATCH, shared=shared
    )
    queries, of = features.rows(_share(BATCH, request), seed=-3 - request["rank"])
    block = max(1, min(_GATHERED // (BATCH * request["width"]), len(train) // _BLOCKS))
    seconds: list[float] = []

    def timed(steps: Iterable[Any], _: str) -> Iterator[Any]:
        """The first steps, as many as are timed; `seconds` of each block."""
        left, iterator, most = 2, iter(steps), len(train) // block
        while left > 0:
            started = time.perf_counter()
            yield from islice(iterator, block)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
            left -= 1
            if len(seconds) == 2:
                wanted = _agreed(request["seconds"] / seconds[1])
                left = int(min(max(_BLOCKS - 2, wanted - 1), most - 2))

    _reset_peak(device)
    before = _peak(device)
    _agreed(0)
    linear_probe(train, queries, of, num_classes=CLASSES, epochs=1, device=device, shared=shared, progress=timed)
    return {
        "step": statistics.median(seconds[1:]) / block,
        "steps": block * (len(seconds) - 1),
        "steps_of_a_block": block,
        "blocks": seconds,
        "rates": len(RATES),
        "batches": len(train),
        "beyond": _peak(device) - before,
    }


def _share(count: int, request: Mapping[str, Any]) -> int:
    """Rows of this process, when all have a contiguous share of `count`."""
    rank, processes = request["rank"], request["processes"]
    return (rank + 1) * count // processes - rank * count // processes


def _agreed(value: float) -> float:
    """The least of all processes, which wait for one another."""
    if not dist.is_initialized():
        return value
    least = torch.tensor(float(value), dtype=torch.float64)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return float(least)


def _in_tiles(queries: Tensor, bank: Tensor) -> dict[str, float]:
    """The bare product of queries and bank in float32, a tile of the bank at a time: seconds, and of processors."""
    queries = queries.float()
    found = queries.new_empty(len(queries), _TILE)
    started, processor = time.perf_counter(), time.process_time()
    for tile in bank.split(_TILE):
        torch.mm(queries, tile.float().T, out=found[:, : len(tile)])
    if queries.is_cuda:
        torch.cuda.synchronize()
    return {"product": time.perf_counter() - started, "product_processor": time.process_time() - processor}


def _exact(bank: Tensor, labels: Tensor, queries: Tensor, of: Tensor, k: int) -> float:
    """Weighted kNN's accuracy in percent, in float64."""
    queries = F.normalize(queries.double(), dim=1)
    similar = torch.cat([queries @ F.normalize(tile.double(), dim=1).T for tile in bank.split(_BLOCK)], dim=1)
    best, places = similar.topk(k)
    votes = queries.new_zeros(len(queries), CLASSES).scatter_add_(1, labels[places], (best / 0.1).exp())
    return 100 * (votes.argmax(1) == of).double().mean().item()


def _peak(device: str) -> int:
    """The most bytes that were in use since `_reset_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else memory()["peak"]


def _reset_peak(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    reset_peak()


ANSWERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"start": _start, "knn": _knn, "probe": _probe}


def _answer(what: str, request: dict[str, Any]) -> dict[str, Any]:
    if request["processes"] > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{request['group']}", rank=request["rank"], world_size=request["processes"]
        )
    try:
        return ANSWERS[what](request)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    # Before a group exists: see amcl_fast.distributed.
    import amcl_fast.distributed  # noqa: F401

    if not (asked := sys.stdin.read()):
        raise SystemExit(1)  # whoever started it has ended since
    print(json.dumps(_answer(sys.argv[1], json.loads(asked))))
