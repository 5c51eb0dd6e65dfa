"""Set single weights to zero, and solve what is left of each layer for what it made before.

Which weights go is decided by one of

    splitting  zeros and the other weights of a layer found together, for the least error of what it makes
    obs        the same one column of weights after the other: optimal brain surgery as in SparseGPT
    magnitude  the smallest; nothing but the bias makes good for them

A runtime multiplies by zeros as by any number: the model gets no quicker, and smaller only once it is compressed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Pass, PassResult, Preflight, Skip, label, option
from onnxopt.core.patterns import absent, excluded
from onnxopt.core.reasons import tried
from onnxopt.graph.compressed import compressed_bytes
from onnxopt.graph.ir import Node
from onnxopt.graph.model import Model
from onnxopt.numerics.sparsity import Runs
from onnxopt.pruning import channels, single_weights
from onnxopt.pruning.single_weights import Criterion

_HALF = 0.5
_ENDS = "first or last layer; keep-ends=false takes it too"
_BODY = "lies in the body of an If, Loop or Scan"
_NO_SPEED = "dense runtimes multiply by zeros as by any number: no speedup"
_NO_DATA = "sparsify: made-up data does not tell what zeros do; each layer lost its smallest weights, unrepaired"


@dataclass(frozen=True, kw_only=True)
class Sparsify(Pass):
    """Sets single weights to zero and repairs the others: smaller when compressed, not quicker."""

    name: ClassVar[str] = "sparsify"
    after: ClassVar[tuple[str, ...]] = ("fold-constants", "clean", "fold-bn", "prune", "svd")
    prepare: ClassVar[tuple[str, ...]] = ("inline-functions", "fold-bn")

    ratio: float = option(_HALF, "share of each layer's weights to set to zero, above 0 and below 1")
    pattern: str = option("", "instead of ratio: 2:4 leaves at most 2 of every 4 input channels side by side")
    criterion: Criterion = option(
        "splitting", "which go: those least missed, found together or column by column; or the smallest"
    )
    exclude: str = option("", "layers to leave alone: names or patterns with *, joined by +")
    keep_ends: bool = option(True, "leave the first and last layers alone")
    samples: int = option(512, "how many samples to choose and repair with, at most")

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio lies above 0 and below 1, and is {self.ratio}")
        if self.pattern and self.ratio != _HALF:
            raise ValueError(f"the pattern {self.pattern} says how much goes; leave ratio out")
        if self.pattern:
            Runs.parse(self.pattern)
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")

    def run(self, model: Model, context: Context) -> PassResult:
        runs = Runs.parse(self.pattern) if self.pattern else None
        layers, skips = [], list(absent(self.exclude, map(label, model.nodes())))
        for layer, why in self._candidates(model):
            goes = single_weights.quota(layer, self.ratio, runs) if not why else 0
            if why := why or single_weights.fault(layer, goes):
                skips.append(Skip(label(layer), why))
            else:
                layers.append((layer, goes))
        if not layers:
            return PassResult(0, tuple(skips))
        packed, notes = compressed_bytes(model), []
        if context.dataset.synthetic:
            notes.append(_NO_DATA)
            done = [single_weights.zero_smallest(model, layer, goes) for layer, goes in layers]
        else:
            done = list(single_weights.thin(model, model.clone(), layers, self.criterion, context, self.samples))
        model.tidy()
        size = compressed_bytes(model)
        notes.append(f"{_NO_SPEED}; {_gain(packed, size)}")
        figures: dict[str, Figure] = {
            "zeros": _zeros(model),
            "layers": [asdict(found) for found in done],
            "zstd_bytes": [packed, size],
            "notes": notes,
        }
        return PassResult(len(layers), tuple(skips), figures)

    def preflight(self, model: Model, context: Context) -> Preflight:
        """Takes the smallest weights of a copy: as many of the same layers."""
        return tried(replace(self, criterion="magnitude"), model, context, "no weight would become zero")

    def _candidates(self, model: Model) -> Iterator[tuple[Node, str]]:
        """Every layer, in the order of the graph, and why it stays as it is, if that is known already."""
        left_out = excluded(self.exclude, map(label, model.nodes()))
        ends = channels.ends(model.graph) if self.keep_ends else set()
        outer = {id(n) for n in model.graph.nodes}
        for layer in filter(channels.is_layer, model.nodes()):
            why = left_out.get(label(layer)) or (_ENDS if id(layer) in ends else "")
            fault = "" if why else unrolled.fault(layer)
            yield layer, why or (_BODY if id(layer) not in outer else f"it {fault}" if fault else "")


def _gain(before: int, after: int) -> str:
    """What became of the compressed size, in words."""
    told = f"by zstd {after / before:.0%} of what it was"
    if round(after / before, 2) < 1:
        return f"the gain is the compressed size, {told}"
    return f"no gain either: compressed it is no smaller, {told}; ask for more zeros"


def _zeros(model: Model) -> float:
    """The share of zeros in all float weights."""
    weights = [c for c in model.constants() if c.dtype in (np.float16, np.float32, np.float64)]
    zeros = sum(int(c.values.size) - int(np.count_nonzero(c.values)) for c in weights)
    return zeros / max(1, sum(int(c.values.size) for c in weights))
