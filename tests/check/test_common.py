"""Two signatures side by side."""

import numpy as np
import pytest

from onnxopt.check.common import common_inputs
from onnxopt.graph.signature import Dim, TensorSpec


def spec(*shape: Dim, name: str = "x", dtype: type = np.float32) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


ANY = TensorSpec("x", np.dtype(np.float32), None)


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        (spec("N", 3), spec("batch", 3), spec("N", 3)),
        (spec(None, 3), spec("batch", 3), spec(None, 3)),
        (spec("N", 3), spec(1, "C"), spec(1, 3)),
        (ANY, spec("N", 3), spec("N", 3)),
        (spec("N", 3), ANY, spec("N", 3)),
        (spec("N", 3), spec("N", 4), None),
        (spec("N", 3), spec("N", 3, 1), None),
        (spec("N", 3), spec("N", 3, dtype=np.float16), None),
        (spec("N", 3), spec("N", 3, name="y"), None),
    ],
)
def test_one_input(a: TensorSpec, b: TensorSpec, both: TensorSpec | None) -> None:
    assert common_inputs([a], [b]) == (None if both is None else (both,))


def test_order_does_not_matter_but_number_does() -> None:
    a, b = spec("N", 3), spec("N", 4, name="y")
    assert common_inputs([a, b], [b, a]) == (a, b)
    assert common_inputs([a, b], [a]) is None
