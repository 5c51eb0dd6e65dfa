"""How far to prune: the setting that leaves as many MACs as asked, or as few more as it can."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import onnx
from onnx import ModelProto, NodeProto

_TRIES = 10
_CLOSE = 0.004  # of the MACs
_FINE = 0.004  # of the settings
_LARGEST = 0.95


@dataclass(frozen=True)
class Found:
    """A pruned model, the setting it was made with, the seconds that took, and how many settings were tried."""

    model: ModelProto
    setting: float
    seconds: float
    tries: int

    @property
    def figures(self) -> dict[str, float]:
        """What goes beside the result."""
        return {"setting": self.setting, "seconds": self.seconds, "tries": self.tries}


_Prune = Callable[[float], ModelProto]


def nearest(prune: _Prune, whole: ModelProto, share: float, sketch: _Prune | None = None) -> Found:
    """The setting with the fewest MACs that are at least ``share`` of the whole model's.

    ``prune`` cuts more the higher its setting is; ``sketch`` is a quicker way to a model of the same sizes. The first
    guess is where both sides of a matrix shrink alike, the others lie halfway between what cut too little and what cut
    too much. Raises ValueError where none cuts too little.
    """
    total, low, high = macs(whole), 0.0, _LARGEST
    setting, best = 1 - share**0.5, (2.0, 0.0)
    for tries in itertools.count(1):
        left = macs((sketch or prune)(setting)) / total
        if left < share:
            high = setting
        else:
            low, best = setting, min(best, (left, setting))
        if 0 <= left - share < _CLOSE or high - low < _FINE or tries == _TRIES:
            break
        setting = (low + high) / 2
    if best[0] > 1:
        raise ValueError(f"every setting that was tried leaves less than {share:.0%} of the MACs")
    started = time.perf_counter()
    model = prune(best[1])
    return Found(model, best[1], time.perf_counter() - started, tries)


def macs(model: ModelProto) -> int:
    """Multiply-accumulate operations of convolutions and products with constant weights, at batch 1."""
    pinned = ModelProto()
    pinned.CopyFrom(model)
    del pinned.graph.value_info[:]
    for tensor in (*pinned.graph.input, *pinned.graph.output):
        if tensor.type.tensor_type.shape.dim:
            tensor.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(pinned).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    weights = {w.name: list(w.dims) for w in graph.initializer}
    return sum(_of_node(node, shapes, weights) for node in graph.node)


def _of_node(node: NodeProto, shapes: dict[str, list[int]], weights: dict[str, list[int]]) -> int:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in weights:
        return 0
    weight = weights[node.input[1]]
    if node.op_type == "Conv":
        return prod(shapes[node.output[0]]) * prod(weight[1:])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return prod(shapes[node.output[0]]) * weight[1 if transposed else -2]
