"""Does a processor add products of unsigned and signed bytes in pairs into 16 bits, where they overflow?

x86 without VNNI does, where ONNX Runtime has AVX2 or AVX-512 kernels: 255 * 127 + 255 * 127 becomes 32767.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto, helper

from onnxopt.graph.model import Model
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import Target

_PAIR = 2 * 255 * 127


def saturates(target: Target) -> bool:
    """What the target's table says; of the machine at hand it is found out by a product that would overflow."""
    return _saturates_here() if target.saturates is None else target.saturates


@cache
def _saturates_here() -> bool:
    size = 16
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [size, size])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [size, size])],
        [helper.make_tensor("w", TensorProto.INT8, [size, size], [127] * size**2)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    found = Session(Model.from_proto(proto)).run({"x": np.full((size, size), 255, np.uint8)})["y"]
    return bool((found != _PAIR * (size // 2)).any())
