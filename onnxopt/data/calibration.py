"""Run a model over a dataset and give every watched tensor its statistics and its range.

One pass serves all methods, because the histogram needs no range in advance. Nothing but the summaries is kept, so
memory does not grow with the samples. The result depends on the values only, not on batches, shards or their order.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnxopt.data.cache import Cache, Progress
from onnxopt.data.dataset import Dataset
from onnxopt.data.statistics import Statistics
from onnxopt.errors import DataError
from onnxopt.graph.signature import Array, Feed
from onnxopt.numerics.ranges import Method, Range, choose_range
from onnxopt.progress import Track, silent

Run = Callable[[Feed], Mapping[str, Array]]

# Values of one tensor that enter its histogram: of each sample, and (unless samples are very many) of all of them.
_VALUES_A_SAMPLE = range(256, 4096)
_VALUES = 2**20
_VERSION = 1
_BATCH_BYTES = 32 * 2**20
_LARGEST_BATCH = 128
_SHARD_BATCHES = 8
_SAVE_EVERY_S = 2.0


@dataclass(frozen=True)
class Calibration:
    """``ranges`` of every tensor that had a finite value, ``statistics`` of every tensor that was seen.

    A range is what a quantizer should cover and holds zero; ``statistics[name].exact`` are the minimum and maximum.
    ``notes`` name, one line each, what a person should know: NaN and Inf, sampling, tensors without values.
    ``seconds`` is the time of this run, without what came from the cache.
    """

    ranges: Mapping[str, Range]
    statistics: Mapping[str, Statistics]
    samples: int
    seconds: float
    notes: tuple[str, ...]


def calibrate(
    run: Run,
    dataset: Dataset,
    tensors: Sequence[str],
    method: Method = "minmax",
    *,
    batch: int | None = None,
    levels: int = 256,
    track: Track = silent,
    cache: Cache | None = None,
    key: str = "",
) -> Calibration:
    """Watch ``tensors`` over all of ``dataset``.

    ``run`` executes the model on one feed and returns the watched tensors. ``batch`` samples go in at a time (None: so
    many that the watched tensors take about 32 MiB); ``levels`` is the number of levels of the quantizer that the
    range is for. With ``cache``, statistics are stored every few seconds and on any exception under ``key`` (the
    model's digest), the data's digest and the tensors; what is stored is not run again, and serves any method that
    needs no more than it holds.
    """
    began = time.perf_counter()
    names = sorted(set(tensors))
    per_sample = max(_VALUES_A_SAMPLE.start, min(_VALUES_A_SAMPLE.stop, _VALUES // max(1, dataset.count)))
    limit = None if method == "minmax" else per_sample
    place = "" if cache is None else _place(key, dataset, names, limit)
    start, notes = _stored(cache, place, dataset.count)
    progress, saved = start, began
    try:
        for progress in _shards(run, dataset, names, limit, start, batch, track):
            if cache is not None and time.perf_counter() - saved > _SAVE_EVERY_S:
                cache.store(place, progress)
                saved = time.perf_counter()
    finally:
        if cache is not None and progress is not start:
            cache.store(place, progress)

    statistics = {name: progress.statistics[name] for name in names if name in progress.statistics}
    ranges = {name: _range(s, method, levels) for name, s in statistics.items() if s.exact is not None}
    notes = (*notes, *_notes(names, statistics, per_sample))
    return Calibration(ranges, statistics, dataset.count, time.perf_counter() - began, notes)


def _place(key: str, dataset: Dataset, names: Sequence[str], limit: int | None) -> str:
    """A digest of all that the statistics depend on."""
    return hashlib.sha256(json.dumps([_VERSION, key, dataset.digest, names, limit]).encode()).hexdigest()


def _stored(cache: Cache | None, place: str, samples: int) -> tuple[Progress, tuple[str, ...]]:
    """Where an earlier run stopped, and a note if it cannot be known."""
    try:
        return (cache and cache.load(place, samples)) or Progress(0, {}), ()
    except DataError as error:
        return Progress(0, {}), (str(error),)


def _shards(
    run: Run,
    dataset: Dataset,
    names: Sequence[str],
    limit: int | None,
    progress: Progress,
    batch: int | None,
    track: Track,
) -> Iterator[Progress]:
    """The statistics after every shard, to the end of the data; a shard counts when it is complete."""
    if not names or progress.done == dataset.count:
        return
    # Shards are whole batches, where the graph fixes those.
    size = max(1, (batch or _batch_size(run, dataset)) // dataset.unit) * dataset.unit
    shard = size * max(1, min(_SHARD_BATCHES, dataset.count // (20 * size)))
    starts = range(progress.done, dataset.count, shard)
    for start in track(starts, "calibrating", len(starts)):
        stop = min(start + shard, dataset.count)
        merged = dict(progress.statistics)
        for feed in dataset.batches(size, start, stop):
            values, samples = run(feed), _samples(dataset, feed)
            for name in names:
                if name in values:
                    seen = Statistics.of(values[name], samples, limit)
                    merged[name] = merged[name] + seen if name in merged else seen
        progress = Progress(stop, merged)
        yield progress


def _batch_size(run: Run, dataset: Dataset) -> int:
    """How many samples fill the memory meant for one batch, judged by the first one."""
    if dataset.batching.whole:
        return 1
    first = next(iter(dataset.batches(1, 0, 1)))
    watched = sum(value.nbytes for value in run(first).values()) // _samples(dataset, first)
    return max(1, min(_LARGEST_BATCH, _BATCH_BYTES // max(watched, 1)))


def _samples(dataset: Dataset, feed: Feed) -> int:
    """The samples in a feed: one, or as many as the first axis of its arrays is long."""
    lengths = (value.shape[0] for value in feed.values() if value.ndim)
    return 1 if dataset.batching.whole else next(lengths, 1)


def _range(statistics: Statistics, method: Method, levels: int) -> Range:
    exact, histogram = statistics.exact, statistics.histogram
    assert exact is not None
    if histogram is None:
        return exact.with_zero()
    return choose_range(method, exact, histogram.nonzero, histogram.edges, levels)


def _notes(names: Sequence[str], statistics: Mapping[str, Statistics], limit: int) -> Iterator[str]:
    sampled = False
    for name in names:
        s = statistics.get(name)
        if s is None:
            yield f"{name}: never computed (in a branch that this data does not take?), so it has no range"
            continue
        for count, kind in ((s.nan_count, "NaN"), (s.inf_count, "infinite")):
            if count:
                yield f"{name}: {count} of {s.count} values are {kind}, left out"
        if s.exact is None:
            yield f"{name}: {'no values at all' if s.count == 0 else 'no finite value'}, so it has no range"
        sampled |= s.histogram is not None and s.histogram.sampled
    if sampled:
        yield (
            f"histograms of large tensors count about {limit} evenly spread values of each sample; "
            "minimum and maximum are of all values"
        )
