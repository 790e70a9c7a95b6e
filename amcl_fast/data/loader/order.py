"""In which order training goes through its images: a function of seed and epoch, which every process computes alike."""

import numpy as np

BLOCK = 64
"""Images that lie one behind the other, and stay together where there is a pool: some MB of photographs."""


class Order:
    """The batches of a process, counted from the first epoch on.

    Without a pool every epoch is a random permutation of all images, which lie anywhere. With one, blocks of images are
    in random order, each process has its own run of them, and images are mixed among those that are in its pool at the
    same time: what is read lies together. Blocks begin elsewhere in every epoch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int = 0,
        share: int = 0,
        shares: int = 1,
        pool: int | None = None,
        repeated: int | None = None,
    ) -> None:
        """Describe the order.

        Args:
            count: of the images.
            batch_size: of a process.
            seed: the same in every process.
            share: index of the process.
            shares: number of processes.
            pool: images of a process that are mixed, in whole batches; None: all.
            repeated: batches that make every epoch, the first of the first one; None: all, reshuffled.
        """
        self.batches = count // shares // batch_size
        self._repeats = repeated is not None
        if repeated is not None:
            self.batches = min(self.batches, repeated)
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._share, self._shares = share, shares
        self.ahead = max(min(round(pool / batch_size), self.batches), 1) if pool else 0
        """Batches by which what is read goes ahead of what is used, an epoch's at the most; 0 without a pool."""
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._pool = pool
        self._before: list[Order] = []  # of the processes that have begun an epoch
        self._taken_over = range(0)

    def take_over(self, batch: int, shares: int) -> None:
        """Go on with the epoch of a batch that so many processes have begun, whose batches were as large together.

        Without a pool it is the same epoch for any number of them.
        """
        whole = self._batch_size * self._shares
        first = batch // self.batches * self.batches
        self._taken_over = range(0)
        if self.ahead and shares != self._shares and batch > first:
            self._taken_over = range(first, first + self.batches)
            self._before = [
                Order(self._count, whole // shares, seed=self._seed, share=share, shares=shares, pool=self._pool)
                for share in range(shares)
            ]

    def shares_at(self, batch: int) -> int:
        """Number of processes whose order a batch is of."""
        return len(self._before) if batch in self._taken_over else self._shares

    def places(self, batch: int) -> np.ndarray:
        """Places of the images of a batch, (batch_size,) integers."""
        if batch in self._taken_over:
            return self._of_batch(np.concatenate([order.places(batch) for order in self._before]), self._share)
        epoch, position = divmod(batch, self.batches)
        if self.ahead:
            return self._of_batch(self._epoch(epoch)[0], position)
        return self._of_batch(self._epoch(epoch)[0], position * self._shares + self._share)

    def lying(self, first: int, last: int) -> np.ndarray:
        """Places of as many images as batches `first` to `last`, the latter excluded, have: those of the pools, in the
        order in which they lie."""
        wanted = [(batch, *divmod(batch, self.batches)) for batch in range(first, last)]
        parts = [
            self.places(batch) if batch in self._taken_over else self._of_batch(self._epoch(epoch)[1], position)
            for batch, epoch, position in wanted
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def begin_of_pool(self, batch: int) -> int:
        """The first batch that shares its pool with this one."""
        if not self.ahead or batch in self._taken_over:
            return batch
        return batch - batch % self.batches % self.ahead

    def _of_batch(self, places: np.ndarray, position: int) -> np.ndarray:
        return places[position * self._batch_size : (position + 1) * self._batch_size]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in the order in which they are used, and in which they lie."""
        epoch = 0 if self._repeats else epoch
        if epoch not in self._epochs:
            near = {known: order for known, order in self._epochs.items() if abs(known - epoch) == 1}
            self._epochs = {**near, epoch: self._pooled(epoch) if self.ahead else (self._permuted(epoch),) * 2}
        return self._epochs[epoch]

    def _permuted(self, epoch: int) -> np.ndarray:
        return _short(permutation((self._seed, epoch), self._count), self._count)

    def _pooled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        keys = _random((self._seed, epoch, 1), -(-self._count // BLOCK) + 1)
        starts = BLOCK * np.argsort(keys[:-1], kind="stable")
        sizes = np.minimum(BLOCK, self._count - starts)
        begins = np.cumsum(sizes) - sizes
        lying = (np.repeat(starts - begins, sizes) + np.arange(self._count) + int(keys[-1] % BLOCK)) % self._count
        own = self.batches * self._batch_size
        lying = _short(lying[self._share * own :][:own], self._count)
        pools = np.arange(own) // (self.ahead * self._batch_size)
        return lying[np.lexsort((_random((self._seed, epoch, 2, self._share), own), pools))], lying


def permutation(seed: tuple[int, ...], count: int) -> np.ndarray:
    """Numbers below `count` in random order, (count,) int64, the same for ever."""
    return np.argsort(_random(seed, count), kind="stable")


def _random(seed: tuple[int, ...], count: int) -> np.ndarray:
    # PCG64's stream is fixed for ever, that of numpy's `permutation` is not.
    return np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)


def _short(places: np.ndarray, count: int) -> np.ndarray:
    return places.astype(np.int32 if count < 1 << 31 else np.int64)
