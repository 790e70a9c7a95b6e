"""Weighted k-nearest-neighbour accuracy, exact at any size: in tiles, in one process or several."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..distributed import apart, exchange, together, world
from ..ops import checks
from ..rows import unit
from ..setting_types import WIDEST, real, whole
from ..temperature import SMALLEST_TAU
from .features import Progress, check_features, silent

_GROUP = 32
"""Similarities of which the largest alone is looked at first: few groups hold one that is near enough."""

# Rows of a tile of the bank, queries compared with it at a time, and queries between two passes over the bank, of all
# processes. On two cores the product is at its fastest; on a GPU a tile of similarities has 1 GiB.
_ON_CPU = 8192, 1024, 16384
_ON_GPU = 32768, 8192, 32768
_VOTES = 1 << 22


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int,
    chunk: int | None = None,
    shared: bool = False,
    progress: Progress = silent,
    by_class: Tensor | None = None,
) -> float:
    """Share of the queries, in percent, whose k nearest neighbours in the bank vote for their class.

    Features are L2-normalised, neighbours are those of largest cosine similarity s, and each votes for its
    class with weight exp(s / temperature) (Wu et al., CVPR 2018, Section 3.4; k = 200, temperature = 0.1 in
    the AMCL paper). Evaluated in float32, on the device of the features; of classes with equal votes the first wins.
    Which of several equal similarities are among the k nearest is not specified.

    Beyond the features it needs, for 16,384 queries at a time, their own copy and their neighbours, and a few tiles of
    similarities: some 250 MiB on a CPU for d = 512 and 400 MiB for d = 2048, whatever the size of the bank.

    Args:
        bank: (B, d) features with known classes, of any floating-point type; they are kept in it.
        bank_labels: (B,) int64, 0 to num_classes - 1.
        queries: (Q, d) features.
        query_labels: (Q,) int64, 0 to num_classes - 1.
        k: number of neighbours; the whole bank if that is smaller.
        temperature: above 0.
        num_classes: number of classes.
        chunk: queries compared with the whole bank at a time; by default so many that memory stays bounded.
        shared: bank and queries are this process's parts, of any size, none included. All processes of the group call
            this, each gets the accuracy of all queries with the banks of all. Features are where the group's backend
            takes them: on the GPU with NCCL, on the CPU with gloo.
        progress: wraps the loop over the tiles.
        by_class: (num_classes, 2) int64 on the device of the features, to which the queries of each class are added:
            those that are right, and all.

    Raises:
        TypeError: features are not floating point or labels not int64.
        ValueError: shapes that do not fit, an empty bank or no queries, labels or settings out of range,
            features that are not finite.
        ElsewhereError: what another process has given cannot be used.
    """
    world_size = world()[1] if shared else 1
    if world_size == 1:
        _check(bank, bank_labels, queries, query_labels, k, temperature, num_classes, chunk)
        counts = [(len(bank), len(queries))]
    else:
        with together():
            _check(bank, bank_labels, queries, query_labels, k, temperature, num_classes, chunk, part=True)
        counts = _counts(bank, queries)
    k = min(k, sum(rows for rows, _ in counts))
    on_gpu = bank.device.type == "cuda"
    tile_size, width, queue = _ON_GPU if on_gpu else _ON_CPU
    most = max(asked for _, asked in counts)
    chunk = min(chunk or max(1, queue // world_size), most)
    passes = -(-most // chunk)
    tiles = max(1, -(-len(bank) // max(tile_size, k)))
    looks = iter(progress(range(passes * tiles), "tiles of kNN"))
    with apart(shared):
        found_right = torch.zeros(num_classes, 2, dtype=torch.int64, device=bank.device)
    for number in range(passes):
        own, truth = (part[number * chunk : (number + 1) * chunk] for part in (queries, query_labels))
        with apart(shared):
            rows = unit(own.float())
            padded = every = rows
            if world_size > 1:
                padded = F.pad(rows, (0, 0, 0, chunk - len(rows)))
                every = rows.new_empty(chunk * world_size, rows.shape[1])
        if world_size > 1:
            dist.all_gather_into_tensor(every, padded)
        with apart(shared):
            nearest = _Nearest(len(every), k, bank.device)
            for tile in range(tiles):
                next(looks)
                # Every n-th row: those of a class, which lie together, are spread over the tiles, and the first tile
                # already holds neighbours of every query that few of the next ones surpass.
                nearest.look(every, *_tile(bank[tile::tiles], bank_labels[tile::tiles]), width)
            found = [nearest.similarity, nearest.labels]
            theirs = [torch.empty_like(part) for part in found] if world_size > 1 else found
        if world_size > 1:
            for part, of_all in zip(found, theirs, strict=True):
                dist.all_to_all_single(of_all, part)
        with apart(shared):
            similarity, labels = _merged(theirs, world_size, k) if world_size > 1 else found
            right = _right(similarity[: len(own)], labels[: len(own)], truth, temperature, num_classes)
            for column, of in enumerate((truth[right], truth)):
                found_right[:, column] += torch.bincount(of, minlength=num_classes)
    next(looks, None)  # a progress bar ends
    if world_size > 1:
        dist.all_reduce(found_right)
    if by_class is not None:
        by_class += found_right
    return 100 * found_right[:, 0].sum().item() / sum(asked for _, asked in counts)


class _Nearest:
    """The k nearest neighbours so far of queries: `similarity` (Q, k) float32, `labels` (Q, k) int32, in no order.

    Where fewer than k were seen, the similarity is -inf.
    """

    def __init__(self, queries: int, k: int, device: torch.device) -> None:
        self.similarity = torch.full((queries, k), -math.inf, device=device)
        self.labels = torch.zeros(queries, k, dtype=torch.int32, device=device)
        self._least = torch.full((queries,), -math.inf, device=device)
        self._new = True

    def look(self, queries: Tensor, tile: Tensor, labels: Tensor, width: int) -> None:
        """Compare with more of the bank.

        Args:
            queries: (Q, d) unit rows.
            tile: (n, d) unit rows, zeros below them up to whole groups.
            labels: (n,) int32 of the rows.
            width: queries at a time.
        """
        memory = tile.new_empty(min(width, len(queries)) * len(tile))
        for start in range(0, len(queries), width):
            part = queries[start : start + width]
            similarity = torch.mm(part, tile.T, out=memory[: len(part) * len(tile)].view(len(part), len(tile)))
            similarity[:, len(labels) :] = -math.inf
            self._take(start, similarity, labels)
        self._new = False

    def _take(self, start: int, similarity: Tensor, labels: Tensor) -> None:
        held, held_labels, least = (
            held[start : start + len(similarity)] for held in (self.similarity, self.labels, self._least)
        )
        if self._new:
            count = min(held.shape[1], len(labels))
            held[:, :count], places = similarity.topk(count, dim=1, sorted=False)
            held_labels[:, :count] = labels[places]
            least.copy_(held.amin(1))
            return
        groups = similarity.view(-1, _GROUP)
        per_row = similarity.shape[1] // _GROUP
        near = (groups.amax(1).view(-1, per_row) > least[:, None]).flatten().nonzero().squeeze(1)
        rows = near // per_row
        values = groups.index_select(0, near)
        places = (values > least[rows, None]).flatten().nonzero().squeeze(1)
        if not len(places):
            return
        which = places // _GROUP
        values = values.flatten()[places]
        found = labels[(near % per_row)[which] * _GROUP + places % _GROUP]
        # In order of the rows, of which each has as many as it has.
        rows, line, counts = rows[which].unique_consecutive(return_inverse=True, return_counts=True)
        place = torch.arange(len(line), device=line.device) - (counts.cumsum(0) - counts)[line]
        longest = int(counts.max())
        more = held.new_full((len(rows), longest), -math.inf)
        more_labels = held_labels.new_zeros(len(rows), longest)
        more[line, place], more_labels[line, place] = values, found
        best, places = torch.cat([held.index_select(0, rows), more], 1).topk(held.shape[1], dim=1, sorted=False)
        held.index_copy_(0, rows, best)
        more_labels = torch.cat([held_labels.index_select(0, rows), more_labels], 1)
        held_labels.index_copy_(0, rows, more_labels.gather(1, places))
        least.index_copy_(0, rows, best.amin(1))


def _tile(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a bank as unit rows, with zeros below them up to whole groups, and their labels as int32."""
    return F.pad(unit(rows.float()), (0, 0, 0, -len(rows) % _GROUP)), labels.int()


def _right(similarity: Tensor, labels: Tensor, truth: Tensor, temperature: float, num_classes: int) -> Tensor:
    """(Q,) whether a query gets the most votes for its own class, from neighbours (Q, k)."""
    right = [truth.new_empty(0, dtype=torch.bool)]
    size = max(1, _VOTES // num_classes)
    for s, classes, own in zip(similarity.split(size), labels.split(size), truth.split(size), strict=True):
        # Every weight of a row divided by the largest: votes compare the same, and exp cannot overflow.
        weights = ((s - s.amax(1, keepdim=True)) / temperature).exp()
        votes = weights.new_zeros(len(s), num_classes).scatter_add_(1, classes.long(), weights)
        right.append(votes.argmax(1) == own)
    return torch.cat(right)


def _merged(found: list[Tensor], world_size: int, k: int) -> list[Tensor]:
    """Similarities and labels (chunk, k) of the nearest of what each process has found, (P * chunk, k)."""
    similarity, labels = (  # (chunk, P * k)
        part.unflatten(0, (world_size, -1)).transpose(0, 1).flatten(1) for part in found
    )
    best, places = similarity.topk(k, dim=1, sorted=False)
    return [best, labels.gather(1, places)]


def _counts(bank: Tensor, queries: Tensor) -> list[tuple[int, int]]:
    """Rows of bank and queries of every process; checks that there are some, and that their widths agree."""
    shapes = exchange((tuple(bank.shape), tuple(queries.shape)))
    widths = sorted({width for pair in shapes for _, width in pair})
    if len(widths) > 1:
        raise ValueError(f"processes must agree on the width of features, got {widths}")
    counts = [(size, asked) for (size, _), (asked, _) in shapes]
    for name, sizes in zip(("bank", "queries"), zip(*counts, strict=True), strict=True):
        if not any(sizes):
            raise ValueError(f"{name} must have at least one row, got none")
    return counts


def _check(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: int,
    temperature: float,
    num_classes: int,
    chunk: int | None,
    part: bool = False,
) -> None:
    checks.tensor("bank", bank)
    checks.tensor("queries", queries)
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"bank and queries must be (B, d) and (Q, d), got {tuple(bank.shape)} and {tuple(queries.shape)}"
        )
    whole("num_classes", num_classes, 1, WIDEST)
    check_features("bank", bank, "bank_labels", bank_labels, num_classes, part=part)
    check_features("queries", queries, "query_labels", query_labels, num_classes, part=part)
    whole("k", k, 1)
    if real("temperature", temperature, 0) < SMALLEST_TAU:
        raise ValueError(f"temperature must be above 0, at least {SMALLEST_TAU}, got {temperature}")
    if chunk is not None:
        whole("chunk", chunk, 1)
