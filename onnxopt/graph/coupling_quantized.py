"""Rules of operators on integers. Zero is where the zero point is: sums over channels need weights with none."""

from __future__ import annotations

import numpy as np

from onnxopt.graph.coupling_moves import concat_of
from onnxopt.graph.coupling_products import convolve, multiply
from onnxopt.graph.coupling_rules import join, pool, spread
from onnxopt.graph.labels import Operand, Rules, Site

rules = Rules()


@rules.on("QuantizeLinear", "DequantizeLinear")
def quantization(site: Site) -> None:
    """One scale for all, or one for each index of an axis; scales in blocks stay unspoken for."""
    x, *parameters = site.operands()
    if any(p.rank > 1 for p in parameters):
        return
    site.pass_on(x, site.y, range(x.rank))
    for p in parameters:
        if p.rank == 1 and p.shape[0] > 1:
            site.equal(p[0], x[int(site.attr("axis", 1))])


@rules.on("ConvInteger")
def integer_convolution(site: Site) -> None:
    """x, w, zero points of both."""
    x, w = site.operands()[:2]
    if convolve(site, x, w, _longer([site.input(3)])):
        _ends(site, w, 1, site.input(3), x, 1)


@rules.on("QLinearConv")
def quantized_convolution(site: Site) -> None:
    """x, w, y, each with scale and zero point, then a bias."""
    x, w = site.inputs[0], site.inputs[3]
    assert x is not None
    assert w is not None
    if convolve(site, x, w, _longer([site.input(4), site.input(5), site.input(8)])):
        _ends(site, w, 1, site.input(5), x, 1)


@rules.on("MatMulInteger", "QLinearMatMul")
def integer_product(site: Site) -> None:
    """a, b, zero points of both; or a, b, y, each with scale and zero point."""
    b_slot, scale, zero = (1, None, 3) if site.node.op == "MatMulInteger" else (3, 4, 5)
    a, b = site.inputs[0], site.inputs[b_slot]
    assert a is not None
    assert b is not None
    multiply(site, a, b)
    for p in _longer([None if scale is None else site.input(scale), site.input(zero)]):
        if p.rank == 1 and b.rank > 1:
            site.equal(p[0], b[-1])
    site.equal(a[-1], b[-2 if b.rank > 1 else -1])
    _ends(site, b, -2 if b.rank > 1 else -1, site.input(zero), a, -1)


@rules.on("com.microsoft.DynamicQuantizeMatMul", "com.microsoft.MatMulIntegerToFloat")
def product_to_float(site: Site) -> None:
    """a, b, scales, zero points, a bias. What is read is quantized as a whole, or has a zero that is computed."""
    a, b, *parameters = site.operands()
    multiply(site, a, b)
    for p in _longer(list(parameters)):
        site.equal(p[-1], b[-1])


@rules.on("com.microsoft.QLinearAdd", "com.microsoft.QLinearMul")
def quantized_broadcast(site: Site) -> None:
    """a, b, y, each with scale and zero point."""
    operands = [x for x in (site.input(0), site.input(3)) if x is not None]
    for x in operands:
        spread(site, x, site.y)
    if site.node.op == "QLinearAdd":
        join(site, operands)


@rules.on("com.microsoft.QLinearLeakyRelu", "com.microsoft.QLinearSigmoid")
def quantized_unary(site: Site) -> None:
    """Index by index."""
    spread(site, site.input(0), site.y)


@rules.on("com.microsoft.QLinearAveragePool", "com.microsoft.QLinearGlobalAveragePool")
def quantized_pool(site: Site) -> None:
    """Channel by channel."""
    if not site.attr("channels_last", 0):
        pool(site)


@rules.on("com.microsoft.QLinearConcat")
def quantized_concat(site: Site) -> None:
    """Scale and zero point of y, then tensors, each with scale and zero point."""
    concat_of(site, [x for x in site.operands() if x.slot % 3 == 2])


def _longer(parameters: list[Operand | None]) -> list[Operand]:
    """Those that have more than one number."""
    return [p for p in parameters if p is not None and int(np.prod(p.shape)) > 1]


def _ends(site: Site, w: Operand, axis: int, zero: Operand | None, x: Operand, other: int) -> None:
    """Channels of ``x`` end where constant weights are zero for them."""
    if w.constant and (zero is None or (zero.values is not None and not zero.values.any())):
        site.ends(w, axis)
    else:
        site.freeze(x[other], "has weights whose zero is not known to be 0")
