"""Which samples a slow target gets: as many as its time allows, drawn over all of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.check.validate import leading
from onnxopt.graph.signature import Array, Feed

if TYPE_CHECKING:
    from onnxopt.data.dataset import Dataset

# Seconds that a target gets for its samples; for the least number of them that says anything it gets more.
BUDGET_S = 10.0
LEAST = 10
MOST_S = 120.0
# What feeds and outputs may hold in memory, here and there.
_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Sample:
    """Samples of a dataset in an order of chance, so that the first of them are as good as any; as feeds.

    ``total`` is how many there are in all, ``sizes`` how many samples are in each feed.
    """

    dataset: Dataset
    total: int
    feeds: tuple[Feed, ...]
    sizes: tuple[int, ...]

    @property
    def labels(self) -> Array | None:
        """The right class of each, where it is known."""
        return self.dataset.labels

    def first(self, count: int) -> tuple[tuple[Feed, ...], int]:
        """Feeds that hold at least so many samples, and how many they hold."""
        ends = np.cumsum(self.sizes)
        feeds = min(int(np.searchsorted(ends, count)) + 1, len(self.feeds))
        return self.feeds[:feeds], int(ends[feeds - 1])

    def worst(self, a: Sequence[Mapping[str, Array]], b: Sequence[Mapping[str, Array]]) -> Feed:
        """The sample for which two results lie farthest apart, alone if the graph takes it alone."""
        apart = [_apart(x, y, size) for x, y, size in zip(a, b, self.sizes, strict=False)]
        i = int(np.argmax([values.max() for values in apart]))
        if self.dataset.batching.whole or self.dataset.unit > 1:
            return self.feeds[i]
        row = sum(self.sizes[:i]) + int(np.argmax(apart[i]))
        return next(iter(self.dataset.subset([row]).batches(1)))


def affordable(dataset: Dataset, seconds: float, nbytes: int) -> int:
    """How many samples to run where each takes so many seconds and holds so many bytes: a round number, or all."""
    count = max(BUDGET_S / seconds, min(LEAST, max(MOST_S / seconds, 1.0)))
    count = min(count, max(_BYTES / max(nbytes, 1), 1.0))
    return dataset.count if count >= dataset.count else _round(int(count))


def draw(dataset: Dataset, counts: Sequence[int], few: int) -> Sample:
    """Samples for targets that run at most so many of them; ``few`` in a feed are not too many for any."""
    groups = -(-max(counts) // dataset.unit)
    order = np.random.default_rng(0).permutation(dataset.count // dataset.unit)[:groups]
    rows = (order[:, None] * dataset.unit + np.arange(dataset.unit)).reshape(-1)
    chosen = dataset.subset(rows)
    feeds = tuple(chosen.batches(min(LEAST, few)))
    sizes = tuple(1 if dataset.batching.whole else leading(feed) for feed in feeds)
    return Sample(chosen, dataset.count, feeds, sizes)


def _round(n: int) -> int:
    """Down to one digit."""
    digit = int(10 ** (len(str(n)) - 1))
    return n // digit * digit


def _apart(a: Mapping[str, Array], b: Mapping[str, Array], size: int) -> Array:
    """How far the results of each sample of a feed lie apart, summed over outputs that are numbers."""
    total = np.zeros(size)
    for name in a.keys() & b.keys():
        x, y = a[name], b[name]
        if x.shape != y.shape or x.dtype.kind not in "fiu":
            continue
        error = np.nan_to_num(np.abs(x.astype(np.float64) - y.astype(np.float64)), nan=np.inf)
        total += error.reshape(size, -1).sum(axis=1) if x.ndim and len(x) == size else error.sum()
    return total
