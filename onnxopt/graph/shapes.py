"""What is known of the shapes without running the model."""

from __future__ import annotations

import onnx

from onnxopt.graph.model import Model
from onnxopt.graph.signature import Dim, Feed

Shapes = dict[str, tuple[Dim, ...]]


def infer(model: Model, feed: Feed | None = None) -> Shapes:
    """Shapes of tensors by name, as ONNX's own inference finds them; a free dimension is a name or None.

    With a ``feed``, the shapes that it leads to. Tensors that inference says nothing of are missing: running the model
    on one sample tells the rest.
    """
    skeleton = model.skeleton()
    if feed is not None:
        _fix(skeleton.graph, feed)
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


def _fix(graph: onnx.GraphProto, feed: Feed) -> None:
    """Give the inputs the feed's sizes, and forget what the file says of the tensors that follow from them."""
    for value in graph.input:
        if value.name in feed:
            del value.type.tensor_type.shape.dim[:]
            for size in feed[value.name].shape:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
