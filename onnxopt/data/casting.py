"""May values of one type be fed as another, and then the conversion itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxopt.errors import DataError
from onnxopt.graph.signature import Array, TensorSpec

# From, to: conversions that keep what a value means, as long as it fits.
_SAFE = frozenset(
    {("float", "float"), ("integer", "integer"), ("bool", "integer"), ("integer", "bool"), ("text", "text")}
)
_KINDS = {"f": "float", "i": "integer", "u": "integer", "b": "bool", "U": "text", "S": "text", "T": "text", "O": "text"}


def kind(dtype: np.dtype[Any]) -> str:
    """``float``, ``integer``, ``bool``, ``text``, or the type's own name."""
    if dtype.kind == "V":  # bfloat16, int4 and others, which numpy does not have itself
        return "float" if "float" in dtype.name else "integer" if "int" in dtype.name else dtype.name
    return _KINDS.get(dtype.kind, dtype.name)


def is_safe(have: np.dtype[Any], want: np.dtype[Any]) -> bool:
    """True for equal types and for conversions within floats, within integers, and between integers and bool."""
    return have == want or (kind(have), kind(want)) in _SAFE


def cast(array: Array, spec: TensorSpec, where: str) -> Array:
    """The values as the input's type, in one piece. Raises DataError for a value that the type cannot hold."""
    values = np.asarray(array)
    if values.dtype != spec.dtype:
        with np.errstate(over="ignore", invalid="ignore"):
            values = values.astype(spec.dtype)
        lost = _lost(np.asarray(array), values)
        if lost.any():
            worst = np.asarray(array)[lost].flat[0]
            raise DataError(f"{where}: the value {worst} does not fit into the input {spec}; give values of its type")
    return np.asarray(values, order="C")


def _lost(before: Array, after: Array) -> Array:
    """Where the value changed: an integer that wrapped round, a float that became infinite."""
    kinds = kind(before.dtype), kind(after.dtype)
    if kinds == ("float", "float"):
        return np.asarray(np.isinf(after) & np.isfinite(before))
    return np.asarray(after != before) if "integer" in kinds else np.zeros(before.shape, bool)
