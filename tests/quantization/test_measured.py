"""Ranges are measured as they are asked for; tensors that have none say why."""

from __future__ import annotations

import numpy as np
import onnx

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model
from onnxopt.numerics.ranges import Range
from onnxopt.quantization.measured import Ranges


def test_ranges_and_why_there_are_none(tmp_path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,4] y) <float zero = {0}, float huge = {1e30}> {
        a = Relu (x)
        b = Mul (x, zero)
        c = Mul (x, huge)
        d = Sqrt (x)
        s = Sum (a, b, c, d)
        y = Neg (s)
    }""")
    x = np.linspace(-1, 3, 40, dtype=np.float32).reshape(10, 4)
    np.savez(tmp_path / "x.npz", x=x)
    model = Model.from_proto(proto)
    context = Context(model.clone(), open_dataset(tmp_path / "x.npz", model.inputs))
    found = Ranges(model, context, "minmax", {"k": Range(-1.0, 1.0)})
    found.measure(["a", "b"])
    found.measure(["c", "d"])
    assert found.found.keys() == {"k", "a"}
    assert found.statistics.keys() == {"a"}
    assert found.found["a"] == (0, 3)
    assert found.unfit == {
        "b": "is zero on all of the calibration data",
        "c": "holds values as large as 3e+30",
        "d": "holds NaN or infinite values",
    }
