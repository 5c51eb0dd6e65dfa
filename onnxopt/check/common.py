"""What two models both take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxopt.graph.signature import Dim, TensorSpec


def common_inputs(a: Sequence[TensorSpec], b: Sequence[TensorSpec]) -> tuple[TensorSpec, ...] | None:
    """The inputs of ``a`` with the sizes that either fixes; None where names, types, ranks or fixed sizes differ.

    Order and the names of free dimensions do not matter.
    """
    others = {spec.name: spec for spec in b}
    if {spec.name for spec in a} != set(others):
        return None
    found = [_common(spec, others[spec.name]) for spec in a]
    return None if None in found else tuple(spec for spec in found if spec is not None)


def _common(a: TensorSpec, b: TensorSpec) -> TensorSpec | None:
    if a.dtype != b.dtype:
        return None
    if a.shape is None or b.shape is None:
        return b if a.shape is None else a
    if len(a.shape) != len(b.shape) or any(_differ(x, y) for x, y in zip(a.shape, b.shape, strict=True)):
        return None
    return replace(a, shape=tuple(y if isinstance(y, int) else x for x, y in zip(a.shape, b.shape, strict=True)))


def _differ(x: Dim, y: Dim) -> bool:
    return isinstance(x, int) and isinstance(y, int) and x != y
