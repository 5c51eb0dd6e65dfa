"""What is known of the shapes without running the model."""

from __future__ import annotations

import onnx

from onnxopt.graph.model import Model
from onnxopt.graph.signature import Dim

Shapes = dict[str, tuple[Dim, ...]]


def infer(model: Model) -> Shapes:
    """Shapes of tensors by name, as ONNX's own inference finds them; a free dimension is a name or None.

    Tensors that it says nothing of are missing: running the model on one sample tells the rest.
    """
    skeleton = model.skeleton()
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception:  # inference is a help only: operators unknown to it, or shapes that contradict the file's own
        inferred = skeleton
    found: Shapes = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.HasField("shape"):
            found[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim
            )
    for constant in model.constants():
        found[constant.name] = tuple(constant.shape)
    return found
