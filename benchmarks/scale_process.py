"""What `bench scale` measures in processes of their own, so that the memory of each is its own.

`measure` starts one process or a group of them over gloo, and returns what each has found. As the module of a process
it answers one request: JSON on stdin, JSON as the last line of stdout.
"""

import gc
import json
import os
import pickle
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

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
# Queries of the smaller number at the least.
_LEAST = 128
# Of the time of a kNN measurement: the product and kNN, of n and of 2n queries, kNN at the target.
_SHARES = 3 * (1 + 1.5)


class Failed(Exception):
    """A process has ended without an answer."""


def measure(
    what: str, request: Mapping[str, Any], environment: Mapping[str, str], processes: int = 1
) -> list[dict[str, Any]]:
    """Have `what`, a key of `_ANSWERS`, measured by so many processes at once; their answers by rank.

    Raises:
        Failed: one of them ended without an answer; its error is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder, _running() as started:
        for rank in range(processes):
            about = {"rank": rank, "processes": processes, "group": f"{folder}/group"}
            process = start(
                [sys.executable, "-m", __name__, what],
                dict(environment) | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            started.append(process)
            assert process.stdin is not None
            process.stdin.write(json.dumps(dict(request) | about).encode())
            process.stdin.close()
        answers = []
        for process in started:
            assert process.stdout is not None
            lines = process.stdout.read().splitlines()
            if process.wait() or not lines:
                raise Failed(f"{what}: the process that measures it ended with code {process.returncode}")
            answers.append(json.loads(lines[-1]))
    return answers


def start(command: Sequence[str], environment: Mapping[str, str], **streams: Any) -> subprocess.Popen[bytes]:
    """Start a process that finds this package; a Ctrl-C reaches it only through whoever started it."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        command, env=dict(os.environ) | {"PYTHONPATH": path} | dict(environment), start_new_session=True, **streams
    )


@contextmanager
def _running() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are put into the list do not outlive the block."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in started:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that `start` has started, with those that it has started, if it still runs."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def memory() -> dict[str, int]:
    """Bytes of this process: resident, of these its own and mapped from files, and the peak."""
    text = Path("/proc/self/status").read_text()
    fields = {"resident": "VmRSS", "own": "RssAnon", "mapped": "RssFile", "peak": "VmHWM"}
    return {name: int(re.findall(rf"{field}:\s*(\d+) kB", text)[0]) * 1024 for name, field in fields.items()}


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
        num_threads=os.cpu_count() or 1,
        device="cpu",
    )
    gc.collect()
    before, started = memory(), time.perf_counter()
    if not request["rank"]:
        data.prepare_data()
    prepared = time.perf_counter()
    if request["processes"] > 1:
        dist.barrier()
    begun = time.perf_counter()
    data.setup("fit")
    ready = time.perf_counter()
    gc.collect()
    answer: dict[str, Any] = {
        "images": data.num_train,
        "prepare": prepared - started,
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
    """kNN beside the bare product of the same shapes, of two numbers of queries; the bank is shared by the processes.

    Of the request: `rows` of the bank, `width`, `dtype`, `device`; `queries`, a number, or null for as many as take
    about `seconds`.
    """
    from amcl_fast.evaluate import knn_accuracy
    from amcl_fast.evaluate.knn import _ON_CPU, _ON_GPU

    rank, processes, device = request["rank"], request["processes"], request["device"]
    features = _Features(request["width"], getattr(torch, request["dtype"]), device)
    share = _share(request["rows"], request)
    bank, labels = features.rows(share, seed=1 + rank)
    settings = {"k": min(K, request["rows"]), "num_classes": CLASSES}
    shared = processes > 1
    error = 0.0
    if processes == 1:
        data = bank[:_CHECKED_ROWS], labels[:_CHECKED_ROWS], *features.rows(_CHECKED, seed=-1)
        error = abs(knn_accuracy(*data, **settings) - _exact(*data, settings["k"]))
    most = request["queries"]
    if most is None:
        some, _ = features.rows(_CHECKED * 16, seed=-1)
        of_one = _in_tiles(some, bank)["product"] / len(some)
        most = 2 * max(_LEAST, round(_agreed(request["seconds"] / _SHARES / of_one)))
    counts = [most] if request["queries"] else [most // 2, most]
    timed = []
    for count in counts:
        queries, _ = features.rows(count, seed=-2)
        own, of = features.rows(_share(count, request), seed=-3 - rank)
        _agreed(0)
        product = _in_tiles(queries, bank)
        _reset_peak()
        before = _peak(device)
        _agreed(0)
        started, processor = time.perf_counter(), time.process_time()
        accuracy = knn_accuracy(bank, labels, own, of, shared=shared, **settings)
        timed.append(
            {
                "queries": count,
                **product,
                "knn": time.perf_counter() - started,
                "knn_processor": time.process_time() - processor,
                "accuracy": accuracy,
                "beyond": _peak(device) - before,
            }
        )
    per_pass = (_ON_GPU if device == "cuda" else _ON_CPU)[2]
    return {
        "timed": timed,
        "error": error,
        "checked": _CHECKED,
        "bank_bytes": bank.nbytes,
        "queries_per_pass": per_pass,
    }


def _probe(request: dict[str, Any]) -> dict[str, Any]:
    """Steps of a linear probe on features that are shared by the processes.

    Of the request: `rows`, `width`, `dtype`, `device`; `seconds` that the steps may take.
    """
    from amcl_fast.evaluate.linear import RATES, ShuffledFeatures, linear_probe

    shared = request["processes"] > 1

    class First(ShuffledFeatures):
        """The first `count` batches of an epoch."""

        count = 0

        def __len__(self) -> int:
            return self.count

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return islice(super().__iter__(), self.count)

    features = _Features(request["width"], getattr(torch, request["dtype"]), request["device"])
    train = First(*features.rows(_share(request["rows"], request), seed=1 + request["rank"]), BATCH, shared=shared)
    queries, of = features.rows(_share(BATCH, request), seed=-3 - request["rank"])

    def seconds(count: int) -> float:
        train.count = count
        _agreed(0)
        started = time.perf_counter()
        linear_probe(train, queries, of, num_classes=CLASSES, epochs=1, device=request["device"], shared=shared)
        return time.perf_counter() - started

    first = seconds(2)
    count = max(4, round(_agreed(request["seconds"] / 3 / max(1e-3, (seconds(6) - seconds(2)) / 4))))
    _reset_peak()
    before = _peak(request["device"])
    timed = [{"steps": steps, "seconds": seconds(steps)} for steps in (count, 2 * count)]
    return {
        "timed": timed,
        "step": (timed[1]["seconds"] - timed[0]["seconds"]) / count,
        "first": first,
        "rates": len(RATES),
        "batches": -(-request["rows"] // BATCH),
        "beyond": _peak(request["device"]) - before,
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


def _reset_peak() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")


_ANSWERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"start": _start, "knn": _knn, "probe": _probe}


def _answer(what: str, request: dict[str, Any]) -> dict[str, Any]:
    if request["processes"] > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{request['group']}", rank=request["rank"], world_size=request["processes"]
        )
    try:
        return _ANSWERS[what](request)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    # Before a group exists: see amcl_fast.distributed.
    import amcl_fast.distributed  # noqa: F401

    print(json.dumps(_answer(sys.argv[1], json.load(sys.stdin))))
