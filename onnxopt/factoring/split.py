"""Write a layer as the chain of its factors. What it makes keeps its name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.pass_ import label
from onnxopt.factoring.forms import Form
from onnxopt.factoring.site import Site
from onnxopt.graph.ir import Node, Tensor, Variable
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array

_GEOMETRY = ("strides", "pads", "dilations", "auto_pad")


def split(model: Model, site: Site, form: Form, factors: Sequence[Floats], bias: Floats | None = None) -> None:
    """Put the chain in the layer's place: ``factors`` as they are fitted, the one that makes the output first.

    With a ``bias`` (outputs,) the factors hold the layer's alpha, and it replaces what the layer adds.
    """
    if site.is_table:
        _table(model, site, factors)
    elif site.convolves:
        _convolutions(model, site, form, factors)
    else:
        _products(model, site, factors)
    if bias is not None:
        _shift(model, site, bias)


def _shift(model: Model, site: Site, bias: Floats) -> None:
    """The last of the chain adds ``bias``; alpha went into its factor before."""
    last = site.node
    if site.at:
        unrolled.write(model, last, unrolled.unroll(last, np.asarray(last.inputs[1].values, np.float64)), bias[None])
    elif last.op == "Gemm":
        last.attrs = {k: v for k, v in last.attrs.items() if k == "transA"}
        column = model.constant(f"{label(last)}.bias", bias[:, None].astype(site.weight.dtype))
        last.inputs = [*last.inputs[:2], column]


def _products(model: Model, site: Site, factors: Sequence[Floats]) -> None:
    """A node of the same kind before the layer; the layer keeps its bias and its output."""
    node, weight = site.node, site.weight
    left, right = factors
    first, second = (_constant(model, site, i, f if site.by_output else f.T) for i, f in enumerate((right, left), 1))
    between = Variable(model.fresh_name(f"{node.outputs[0].name}.low_rank"), weight.dtype)
    inputs = [site.x, first] if site.at else [first, site.x]
    if node.op == "Gemm" and model.opset < 11:
        inputs.append(model.constant(f"{weight.name}.zero", np.zeros(1, weight.dtype)))
    attrs = {k: v for k, v in node.attrs.items() if k in ("transA", "transB")}
    site.graph.nodes.append(Node(node.op, model.fresh_name(f"{label(node)}.low_rank"), inputs, [between], attrs))
    node.attrs.pop("transA" if site.at else "transB", None)
    node.inputs[site.into], node.inputs[site.at] = between, second


def _table(model: Model, site: Site, factors: Sequence[Floats]) -> None:
    """A narrow table, and a product behind it; the product takes the name of what was looked up."""
    node, y = site.node, site.node.outputs[0]
    left, right = factors
    narrow, wide = _constant(model, site, 1, right.T), _constant(model, site, 2, left.T)
    between = Variable(model.fresh_name(f"{y.name}.low_rank"), y.dtype)
    node.inputs[0] = narrow
    node.outputs = [between]
    name = model.fresh_name(f"{label(node)}.low_rank")
    site.graph.nodes.append(Node("MatMul", name, [between, wide], [y]))


def _convolutions(model: Model, site: Site, form: Form, factors: Sequence[Floats]) -> None:
    """Convolutions before the layer, which becomes the last of the chain and keeps its bias."""
    node, rank = site.node, len(site.kernel)
    x, ones = site.x, (1,) * rank
    given = {k: node.attrs[k] for k in _GEOMETRY if k in node.attrs}
    chain: list[tuple[Array, dict[str, object]]]
    if form.kind == "matrix":
        left, right = factors
        chain = [(right.reshape(*right.shape, *ones), given), (left.reshape(*left.shape, *ones), {})]
    elif form.kind == "spatial":
        left, right = factors
        chain = [(right[..., None], _along(given, 0)), (left[:, :, None], _along(given, 1))]
    else:
        outer, core, inner = factors
        grouped = {"group": len(core)} if form.kind == "cp" else {}
        middle = (
            core.reshape(*core.shape[:-2], *site.kernel)
            if form.kind == "tucker"
            else core.reshape(len(core), 1, *site.kernel)
        )
        chain = [
            (inner.reshape(*inner.shape, *ones), {}),
            (middle, given | grouped),
            (outer.reshape(*outer.shape, *ones), {}),
        ]
    for i, (values, attrs) in enumerate(chain, 1):
        weight = _constant(model, site, i, values)
        attrs = attrs | {"kernel_shape": list(values.shape[2:])}
        if i == len(chain):
            node.inputs[0], node.inputs[1], node.attrs = x, weight, attrs
            return
        between: Tensor = Variable(model.fresh_name(f"{node.outputs[0].name}.low_rank"), site.weight.dtype)
        name = model.fresh_name(f"{label(node)}.low_rank")
        site.graph.nodes.append(Node("Conv", name, [x, weight], [between], attrs))
        x = between


def _along(given: dict[str, object], axis: int) -> dict[str, object]:
    """The geometry of a convolution over one of two dimensions."""
    found: dict[str, object] = {}
    for name, value in given.items():
        if name == "auto_pad":
            found[name] = value
            continue
        sides = list(value)  # type: ignore[call-overload]  # all but auto_pad are lists of integers
        idle = 0 if name == "pads" else 1
        found[name] = [v if i % 2 == axis else idle for i, v in enumerate(sides)]
    return found


def _constant(model: Model, site: Site, i: int, values: Array) -> Tensor:
    return model.constant(f"{site.weight.name}.{i}", np.ascontiguousarray(values).astype(site.weight.dtype))
