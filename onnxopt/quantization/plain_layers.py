"""Layers in the form that ONNX Runtime's integer kernels take; exact up to rounding.

- Gemm without alpha and beta, its bias as (channels,): they go into the weights and the bias.
- MatMul of two matrices, with an Add of constants or not, becomes Gemm: the bias is then added in integers.
- MatMul of more axes and an Add of a vector: the vector gets as many axes as the product. As (channels,) the runtime
  would fuse both into a float Gemm behind a Reshape, before it looks for integer kernels.
- Conv of one pixel, as behind a global pool, becomes Gemm: that can give floats, and need not turn the layout.
"""

from __future__ import annotations

import numpy as np

from onnxopt.core.pass_ import label
from onnxopt.graph.ir import Constant, Node, Scope, Variable, is_constant
from onnxopt.graph.model import Model
from onnxopt.quantization.eligible import Reasons, Sizes, Specs, column_bias, fault, is_layer

# Since this opset a Gemm may go without C.
_OPTIONAL_C = 11


def make_plain(model: Model, sizes: Sizes, specs: Specs, left_out: Reasons) -> None:
    """Rewrite the layers that can run in integers, and give every node that can a name of its own.

    ``sizes`` are observed shapes, ``specs`` inferred types, both by tensor; nodes in ``left_out`` stay as they are.
    """
    scope = Scope(model.graph)
    taken: set[str] = set()
    for node in list(model.graph.nodes):
        if label(node) in left_out or fault(node, sizes, specs, model.opset):
            continue
        if not node.name or node.name in taken:
            node.name = model.fresh_name(f"{node.op}_{label(node)}")
        taken.add(node.name)
        if not is_layer(node):
            continue
        if node.op == "Conv" and _has_one_pixel(node, specs):
            _plain_pixel(model, node)
        if node.op == "MatMul":
            _plain_matmul(model, node, scope, len(sizes[node.inputs[0].name]))
        if node.op == "Gemm":
            _plain_gemm(model, node)
    model.tidy()


def _has_one_pixel(conv: Node, specs: Specs) -> bool:
    """Is it certain that a convolution reads a single position, and no padding?"""
    x = specs.get(conv.inputs[0].name)
    kernel = conv.inputs[1].shape[2:]
    one = x is not None and x.shape is not None and all(d == 1 for d in (*x.shape[2:], *kernel))
    return one and conv.attrs.get("group", 1) == 1 and not any(conv.attrs.get("pads", ()))


def _plain_pixel(model: Model, conv: Node) -> None:
    x, weight, (y,) = conv.inputs[0], conv.inputs[1], conv.outputs
    channels, rank = int(weight.shape[0]), len(weight.shape)
    flat, made = (Variable(model.fresh_name(f"{t.name}_flat"), t.dtype) for t in (x, y))
    model.graph.nodes.append(Node("Flatten", model.fresh_name(flat.name), [x], [flat], {"axis": 1}))
    conv.op, conv.attrs = "Gemm", {"transB": 1}
    conv.inputs = [flat, model.constant(weight.name, weight.values.reshape(channels, -1)), *conv.inputs[2:]]
    if len(conv.inputs) < 3 and model.opset < _OPTIONAL_C:
        conv.inputs.append(model.constant(f"{y.name}_bias", np.zeros(channels, np.float32)))
    conv.outputs = [made]
    shape = model.constant(f"{y.name}_shape", np.array([0, channels, *[1] * (rank - 2)], np.int64))
    model.graph.nodes.append(Node("Reshape", model.fresh_name(f"{y.name}_Reshape"), [made, shape], [y]))


def _plain_matmul(model: Model, node: Node, scope: Scope, axes: int) -> None:
    add = _bias_add(node, scope, axes)
    if axes == 2:
        node.op = "Gemm"
        if add is not None:
            node.inputs.append(_constant_of(add))
            (output,) = add.outputs
            add.outputs.clear()
            node.outputs[0] = output
        elif model.opset < _OPTIONAL_C:
            columns = node.inputs[1].shape[1]
            node.inputs.append(model.constant(f"{node.outputs[0].name}_bias", np.zeros(columns, np.float32)))
    elif add is not None:
        vector = _constant_of(add)
        shape = (1,) * (axes - 1) + (-1,)
        i = next(i for i, t in enumerate(add.inputs) if t is vector)
        add.inputs[i] = model.constant(vector.name, vector.values.reshape(shape))


def _bias_add(node: Node, scope: Scope, axes: int) -> Node | None:
    """The Add of one constant per column, or of one in all, that alone reads a product of so many axes."""
    product = node.outputs[0]
    add = product.outputs[0] if scope.used_once(product) else None
    if add is None or add.op != "Add" or not add.is_standard or not any(map(is_constant, add.inputs)):
        return None
    columns = node.inputs[1].shape[1]
    shape = _constant_of(add).shape
    if len(shape) > axes:
        return None
    return add if all(d == 1 for d in shape[:-1]) and shape[-1:] in ((), (1,), (columns,)) else None


def _constant_of(add: Node) -> Constant:
    return next(t for t in add.inputs if isinstance(t, Constant))


def _plain_gemm(model: Model, node: Node) -> None:
    bias = column_bias(node)
    assert bias is not None
    alpha = np.float32(node.attrs.pop("alpha", 1.0))
    if alpha != 1:
        node.inputs[1] = model.constant(node.inputs[1].name, node.inputs[1].values * alpha)
    beta = node.attrs.pop("beta", 1.0)
    if len(node.inputs) > 2 and (beta != 1 or node.inputs[2].shape != bias.shape):
        node.inputs[2] = model.constant(node.inputs[2].name, bias.astype(np.float32))
