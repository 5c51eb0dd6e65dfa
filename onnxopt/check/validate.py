"""A candidate against its reference on held-out data: answers, speed, memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.check.audit import look
from onnxopt.check.gates import MIN_SPEEDUP, SLOW
from onnxopt.check.quality import Comparison, Quality
from onnxopt.errors import ExecutionError, ModelError
from onnxopt.graph import io
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array, Feed
from onnxopt.progress import Track, silent
from onnxopt.report.report import Latency, Validation
from onnxopt.runtime.audit import Audit, is_quantized
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.local import run_in_child
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import NATIVE, Target
from onnxopt.runtime.timing import Timing, interleave

if TYPE_CHECKING:
    from onnxopt.data.dataset import Dataset

_BATCH = 32
_ROUNDS = 3
_ROUND_S = 1.2
_MIN_PAIRS = 3


def validate(
    reference: Model | str | Path,
    candidate: Model | str | Path,
    dataset: Dataset,
    *,
    threads: int = 1,
    batch: int = 1,
    target: Target = NATIVE,
    track: Track = silent,
) -> Validation:
    """Compare two models on every sample of the dataset; time them at ``batch``.

    Give paths where there are files: a Model is first written to one. Raises ExecutionError when a model cannot be run,
    ModelError when their outputs have other names, DataError when a sample cannot be read.
    """
    with as_file(reference) as reference_path, as_file(candidate) as candidate_path:
        paths = (reference_path, candidate_path)
        feed = next(iter(dataset.batches(batch, stop=batch)))
        # First, while nothing else is in memory: what is freed later need not go back to the system.
        memory, trouble = _memory(paths, feed, threads, track)
        original, other = (Session(path, threads=threads) for path in track(paths, "load both models"))
        if missing := sorted(set(original.outputs) - set(other.outputs)):
            raise ModelError(f"the candidate has no output '{missing[0]}': it cannot be compared with this reference")
        quality = _quality(original, other, dataset, track)
        size = 1 if dataset.batching.whole else leading(feed)
        del original, other
        timing = _timed(paths, feed, threads, track)
        audited = _audited(candidate, dataset)
    notes = [*quality.notes, *trouble]
    if size != batch:
        notes.append(f"timed at batch {size}, not {batch}: the graph or the data has it so")
    latency_reference, latency = _latency(timing.reference_ms), _latency(timing.candidate_ms)
    return Validation(
        target=target.name,
        samples=dataset.count,
        sqnr_db=quality.sqnr_db,
        cosine=quality.cosine,
        outputs=quality.outputs,
        agreement=quality.agreement,
        accuracy=quality.accuracy,
        accuracy_reference=quality.accuracy_reference,
        accuracy_top5=quality.accuracy_top5,
        accuracy_top5_reference=quality.accuracy_top5_reference,
        latency_ms=latency.median_ms,
        latency_reference_ms=latency_reference.median_ms,
        latency=latency,
        latency_reference=latency_reference,
        speedup=timing.speedup,
        speedup_low=timing.speedup_low,
        speedup_high=timing.speedup_high,
        threads=threads,
        batch=size,
        peak_memory_bytes=memory[1],
        peak_memory_reference_bytes=memory[0],
        notes=tuple(notes),
        integer_share=audited.integer_share if audited is not None else None,
        islands=len(audited.islands) if audited is not None else None,
        conversions=audited.conversions if audited is not None else None,
    )


def _audited(candidate: Model | str | Path, dataset: Dataset) -> Audit | None:
    """What the runtime executes of the candidate; None where nothing in it is quantized, which costs no session."""
    model = candidate if isinstance(candidate, Model) else io.load(candidate)
    return look(model, dataset) if is_quantized(model) else None


def _quality(original: Session, other: Session, dataset: Dataset, track: Track) -> Quality:
    comparison = Comparison(dataset.labels)
    size = 1 if dataset.batching.whole else dataset.batching.fixed or _BATCH
    for feed in track(dataset.batches(size), "validate", -(-dataset.count // size)):
        comparison.add(feed, original.run(feed), other.run(feed))
    return comparison.result(dataset.count)


def _timed(paths: tuple[Path, Path], feed: Feed, threads: int, track: Track) -> Timing:
    """Both models in turn, in rounds that load them anew: where memory happens to lie moves a round by some percent."""
    rounds: list[Timing] = []
    for doing in ("time both models", "time both models again"):
        for _ in track(range(_ROUNDS), doing):
            original, other = (Session(path, threads=threads) for path in paths)
            rounds.append(interleave(original, other, feed, budget_s=_ROUND_S, min_pairs=_MIN_PAIRS))
            del original, other  # or the next two would lie in memory beside them
        timing = Timing.over(rounds)
        if timing.speedup >= SLOW or timing.speedup_high < MIN_SPEEDUP:
            break
        # It is slower, or the machine had other work: look again.
    return timing


def _memory(
    paths: tuple[Path, Path], feed: Feed, threads: int, track: Track
) -> tuple[tuple[int | None, int | None], list[str]]:
    """What each model adds to a process at most. Not known is not fatal: both ran here."""
    try:
        jobs = [Job(models=(path,), feeds=(feed,), threads=threads, keep=False) for path in paths]
        runs = [run_in_child(job) for job in track(jobs, "measure memory")]
    except (ExecutionError, OSError) as error:
        return (None, None), [f"peak memory not measured: {error}"]
    return (runs[0].memory_bytes, runs[1].memory_bytes), []


def _latency(times_ms: Array) -> Latency:
    low, median, high = (float(q) for q in np.percentile(times_ms, (10, 50, 90)))
    return Latency(median, low, high)


def leading(feed: Feed) -> int:
    """How many samples a feed holds, where samples are stacked."""
    return next((len(value) for value in feed.values() if value.ndim), 1)


@contextmanager
def as_file(model: Model | str | Path) -> Iterator[Path]:
    """A file of the model: its own, or one made for the time being."""
    if not isinstance(model, Model):
        try:
            str(model).encode()
        except UnicodeEncodeError:
            raise ModelError(f"the name {str(model)!a} is not UTF-8: ONNX Runtime cannot open it; rename it") from None
        yield Path(model)
        return
    with (
        tempfile.TemporaryDirectory(prefix="onnxopt-") as folder,
        io.staged(model, Path(folder) / "model.onnx") as file,
    ):
        yield file.path
