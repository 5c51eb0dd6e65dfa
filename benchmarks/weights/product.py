"""How long ONNX Runtime takes for one product of 1024 x 1024 weights, as floats and in few bits, in microseconds.

    python benchmarks/weights/product.py

On one thread, the shortest of many runs. Level 0 computes in floats, level 4 rounds what is read to 8 bits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper

sys.path.append(str(Path(__file__).parents[1] / "common"))

from texts import table

from onnxopt import PassManager
from onnxopt.core.spec import parse
from onnxopt.graph.model import Model
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import CORTEX_A53, NATIVE
from onnxopt.runtime.timing import seconds

SIZE, ROWS, BLOCKS = 1024, (1, 32), (32, 128)
# The pass takes level 0 for targets without integer dot products.
FORMS = [(bits, target) for bits in (4, 8) for target in (NATIVE, CORTEX_A53)]


def product(rows: int) -> Model:
    weight = np.random.default_rng(0).standard_normal((SIZE, SIZE), np.float32)
    x, y = (helper.make_tensor_value_info(name, 1, [rows, SIZE]) for name in "xy")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    graph = helper.make_graph([node], "product", [x], [y], [numpy_helper.from_array(weight, "w")])
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def microseconds(model: Model, rows: int) -> str:
    feed = {"x": np.random.default_rng(1).standard_normal((rows, SIZE), np.float32)}
    return f"{1e6 * seconds(Session(model), feed):.0f}"


def main() -> None:
    lines = []
    for rows in ROWS:
        line = [str(rows), microseconds(product(rows), rows)]
        for bits, target in FORMS:
            times = []
            for block in BLOCKS:
                model = product(rows)
                PassManager(parse(f"quant-weights:form=nbits:bits={bits}:block={block}")).run(model, target=target)
                times.append(microseconds(model, rows))
            line.append(f"{times[0]} ({times[1]})")
        lines.append(line)
    heads = [f"{bits} bits, level {4 if target is NATIVE else 0}" for bits, target in FORMS]
    print(table(["rows", "float", *heads], lines))


if __name__ == "__main__":
    main()
