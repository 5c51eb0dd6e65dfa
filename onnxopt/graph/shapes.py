"""What is known of the shapes without running the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import onnx

from onnxopt.graph.model import Model
from onnxopt.graph.signature import Dim, Feed, TensorSpec

Shapes = dict[str, tuple[Dim, ...]]


def infer(model: Model, feed: Feed | None = None) -> Shapes:
    """Shapes of tensors by name; tensors whose rank is not known are missing. See ``specs``."""
    found = {name: spec.shape for name, spec in specs(model, feed).items() if spec.shape is not None}
    return found | {c.name: tuple(c.shape) for c in model.constants()}


def specs(
    model: Model, feed: Feed | None = None, observed: Mapping[str, TensorSpec] | None = None
) -> dict[str, TensorSpec]:
    """Types and shapes of tensors, bodies included, as ONNX's own inference finds them.

    A free dimension is a name or None. What the file says of inner tensors is believed. With a ``feed``, the shapes
    that it leads to; ``observed`` are then such as are known from a run, and the first turn of a Loop is looked at.
    Tensors that inference says nothing of are missing: running one sample tells the rest.
    """
    skeleton = model.skeleton()
    if feed is not None:
        _fix(skeleton.graph, feed)
        _pin(skeleton.graph, observed or {})
    return _inferred(skeleton)


def proven(model: Model) -> dict[str, TensorSpec]:
    """Types and shapes of tensors by name, bodies included, as far as they follow from what the inputs may be.

    For rewrites, which must be right for every feed: what the file says of inner tensors and outputs is not believed
    (exporters write down the sizes of the example that they traced), and a default is not taken for a constant.
    """
    skeleton = model.skeleton()
    defaults = [t for t in skeleton.graph.initializer if t.name in model.graph.defaults]
    for tensor in defaults:
        skeleton.graph.initializer.remove(tensor)
    for graph in _graphs(skeleton.graph):
        del graph.value_info[:]
        for value in (*graph.output, *(graph.input if graph is not skeleton.graph else ())):
            _forget_shape(value)
    return _inferred(skeleton)


def _inferred(skeleton: onnx.ModelProto) -> dict[str, TensorSpec]:
    _lend(skeleton.graph, {})
    # Inference is a help only: it raises on operators unknown to it, and on shapes that contradict the file's own.
    with contextlib.suppress(Exception):
        skeleton = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    return {
        value.name: _spec(value)
        for graph in _graphs(skeleton.graph)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type
    }


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, dtype, None)
    return TensorSpec(value.name, dtype, tuple(map(_dim, tensor.shape.dim)))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    # Some exporters write -1 for a free dimension, and runtimes read it so.
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from _graphs(body)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs


def _lend(graph: onnx.GraphProto, outer: Mapping[str, onnx.TensorProto]) -> None:
    """Copy to bodies the constants that they capture, whose values inference does not see from there."""
    own = {t.name: t for t in graph.initializer}
    graph.initializer.extend(outer[k] for k in {k for n in graph.node for k in n.input} & outer.keys() - own.keys())
    for body in (body for node in graph.node for body in _bodies(node)):
        _lend(body, {**outer, **own})


def _fix(graph: onnx.GraphProto, feed: Feed) -> None:
    """Give the inputs the feed's sizes, and forget what the file says of the tensors that follow from them."""
    for value in graph.input:
        if value.name in feed and value.type.HasField("tensor_type"):
            del value.type.tensor_type.shape.dim[:]
            for size in feed[value.name].shape:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    for value in graph.output:
        _forget_shape(value)
    del graph.value_info[:]


def _pin(main: onnx.GraphProto, observed: Mapping[str, TensorSpec]) -> None:
    """Write down what is known of inner tensors, and give the bodies of Loops what they carry at first.

    ONNX's inference does not, because it may have another shape in later turns.
    """
    made = {name for node in main.node for name in node.output} - {value.name for value in main.output}
    for name in made & observed.keys():
        spec = observed[name]
        kind = onnx.helper.np_dtype_to_tensor_dtype(spec.dtype)
        main.value_info.append(onnx.helper.make_tensor_value_info(name, kind, spec.shape))
    for node in (n for graph in _graphs(main) for n in graph.node if n.op_type == "Loop"):
        for body in (a.g for a in node.attribute if a.name == "body"):
            for value, name in zip(body.input[2:], node.input[2:], strict=True):
                if name in observed and value.type.HasField("tensor_type"):
                    _forget_shape(value)
                    value.type.tensor_type.shape.SetInParent()
                    for size in observed[name].shape or ():
                        value.type.tensor_type.shape.dim.add(dim_value=size)
            for value in body.output:
                _forget_shape(value)


def _forget_shape(value: onnx.ValueInfoProto) -> None:
    # Touching tensor_type would make a tensor of a sequence.
    if value.type.HasField("tensor_type"):
        value.type.tensor_type.ClearField("shape")
