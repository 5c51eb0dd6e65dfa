"""Models from text, for tests of what looks at a graph without running it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxopt.graph.model import Model


@pytest.fixture
def build() -> Callable[..., Model]:
    """A model from its nodes: the weights that ``weights`` declares are drawn, types and sizes inferred."""
    return _build


def _build(
    nodes: str, weights: str = "", x: str = "float[1,8,16,16] x", y: str = "float[] y", opset: int = 17
) -> Model:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({y}) <{weights}> {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for value in list(proto.graph.value_info):
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        array = rng.standard_normal([d.dim_value for d in tensor.shape.dim]).astype(dtype)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.value_info.remove(value)
    for value in proto.graph.output:
        value.ClearField("type")
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto))
