"""What two models compute from the same samples: their outputs, and each tensor that both have by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from onnxopt.core.quality import Comparison
from onnxopt.data.dataset import Dataset
from onnxopt.graph.model import Model
from onnxopt.numerics.packing import packed
from onnxopt.progress import Track, silent
from onnxopt.report.difference import Numbers
from onnxopt.report.report import OutputQuality
from onnxopt.runtime.session import Session

# Bytes of tensors that are watched at once, in each model.
_MEMORY = 2**27
# What summing in another order makes of float32 stays above.
_ROUNDING_DB = 100.0

Sizes = Mapping[str, tuple[int, ...]]


def numbers(
    a: Model, b: Model, sizes: tuple[Sizes, Sizes], dataset: Dataset, *, threads: int = 1, track: Track = silent
) -> Numbers:
    """Run both, sample by sample; only sums are kept. Outputs come from the models as the runtime fuses them, inner
    tensors from the graphs as they are written, some at a time. Raises ExecutionError where one does not run."""
    outputs = [o.name for o in a.outputs if o.name in {o.name for o in b.outputs}]
    found = list(_compared(a, b, [outputs] if outputs else [], dataset, threads, track, "compare outputs", True))
    shared = [name for name in shared_tensors(a, b, sizes) if name not in outputs]
    inner = list(
        _compared(a, b, list(parts_of(shared, sizes[0])), dataset, threads, track, "compare inner tensors", False)
    )
    first = next((t.name for t in (*inner, *found) if not t.sqnr_db >= _ROUNDING_DB), None)
    return Numbers(dataset.count, tuple(found), tuple(inner), first)


def shared_tensors(a: Model, b: Model, sizes: tuple[Sizes, Sizes]) -> list[str]:
    """Tensors of both main graphs with known and equal shapes, in the order of the first."""
    made = [[t.name for n in m.graph.nodes for t in n.outputs if t.name] for m in (a, b)]
    others = set(made[1])
    return [n for n in made[0] if n in others and n in sizes[0] and sizes[0][n] == sizes[1].get(n)]


def parts_of(names: Sequence[str], sizes: Sizes) -> Iterator[list[str]]:
    """Tensors that together take little memory."""
    return packed(names, lambda name: 8 * prod(sizes[name]), _MEMORY)


def _compared(
    a: Model,
    b: Model,
    parts: Sequence[Sequence[str]],
    dataset: Dataset,
    threads: int,
    track: Track,
    what: str,
    optimize: bool,
) -> Iterator[OutputQuality]:
    for names in track(parts, what):
        one, other = (Session(m, outputs=names, threads=threads, optimize=optimize) for m in (a, b))
        sums = Comparison()
        for feed in dataset.batches(1):
            sums.add(feed, one.run(feed), other.run(feed))
        yield from sums.result(dataset.count).outputs
