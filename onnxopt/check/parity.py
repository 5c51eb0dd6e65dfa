"""What another processor does to a model's answers, and how much of that is too much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from onnxopt.check.quality import Comparison, Quality
from onnxopt.graph.ir import is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array, Feed
from onnxopt.numerics.tolerance import ERROR_FLOOR, ERROR_GROWTH, allowed, deviation
from onnxopt.report import words
from onnxopt.report.report import Validation
from onnxopt.runtime.audit import is_quantized

Outputs = Mapping[str, Array]


def estimate(native: Validation, here: Quality, there: Quality, samples: int) -> Quality:
    """What all samples would show there: what they show here, and what the target changes on some of them.

    One answer among these decides nothing: a change of a share counts less one sample.
    """

    def share(all_here: float | None, some_here: float | None, some_there: float | None) -> float | None:
        if all_here is None or some_here is None or some_there is None:
            return some_there
        change = some_there - some_here
        return all_here + float(np.sign(change)) * max(abs(change) - 1 / samples, 0.0)

    change = 0.0 if here.sqnr_db == there.sqnr_db else there.sqnr_db - here.sqnr_db
    finite = np.isfinite(change) and np.isfinite(native.sqnr_db)
    return replace(
        there,
        sqnr_db=native.sqnr_db + change if finite else min(native.sqnr_db, there.sqnr_db),
        agreement=share(native.agreement, here.agreement, there.agreement),
        accuracy=share(native.accuracy, here.accuracy, there.accuracy),
        accuracy_reference=native.accuracy_reference if native.accuracy is not None else there.accuracy_reference,
    )


def compared(
    feeds: Iterable[Feed],
    expected: Iterable[Outputs],
    found: Iterable[Outputs],
    labels: Array | None,
    samples: int,
    names: set[str] | None = None,
) -> Quality:
    """Two results of the same feeds compared; ``names``: only these outputs."""
    comparison = Comparison(labels)
    for feed, a, b in zip(feeds, expected, found, strict=False):
        comparison.add(feed, {k: v for k, v in a.items() if names is None or k in names}, b)
    return comparison.result(samples)


def is_coarse(model: Model) -> bool:
    """Does it compute in integers, in float16, or with MatMulNBits, so that processors differ by more than the last
    bits of float32?"""
    half = np.dtype(np.float16)
    return is_quantized(model) or any(
        node.op == "MatMulNBits"
        or (node.op == "Cast" and node.attrs.get("to") == onnx.TensorProto.FLOAT16)
        or (node.op != "Cast" and any(is_constant(t) and t.dtype == half for t in node.inputs))
        for node in model.nodes()
    )


def grown(here: Quality, there: Quality) -> list[str]:
    """The error of a model that is coarse there, if it is much larger than here."""
    before, after = (10 ** (-q.sqnr_db / 10) for q in (here, there))
    if after <= ERROR_GROWTH * before + ERROR_FLOOR:
        return []
    times = f"{after / before:.3g} times the energy of here" if before > 0 and after < np.inf else "new there"
    return [f"the error is {times} ({words.decibels(there.sqnr_db)} after {words.decibels(here.sqnr_db)})"]


def apart(here: Sequence[Outputs], there: Sequence[Outputs]) -> list[str]:
    """The output of a float model that differs by more than rounding explains."""
    for a, b in zip(here, there, strict=False):
        for name in a.keys() & b.keys():
            if not np.issubdtype(a[name].dtype, np.inexact):
                continue
            far = deviation(a[name], b[name])
            if far > allowed(a[name].dtype):
                return [f"'{name}' differs by {far:.2g} of its largest value, more than rounding explains"]
    return []
