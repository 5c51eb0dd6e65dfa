"""Rules of operators that multiply and sum: convolutions, products of matrices, Einsum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxopt.graph.coupling_rules import spread
from onnxopt.graph.labels import Operand, Rules, Site

rules = Rules()


@rules.on("Conv", "ConvTranspose")
def convolution(site: Site) -> None:
    """y (N, out, ...) from x (N, in, ...) and b (out); w (out, in / group, ...), transposed (in, out / group, ...)."""
    x, w, *bias = site.operands()
    if convolve(site, x, w, bias):
        site.ends(x, 1)


@rules.on("com.microsoft.FusedConv")
def fused_convolution(site: Site) -> None:
    """Conv, a tensor added that has the shape of the output, an activation."""
    x, w, *bias = (t for t in site.operands() if t.slot < 3)
    if convolve(site, x, w, bias):
        site.ends(x, 1)
    spread(site, site.input(3), site.y)


def convolve(site: Site, x: Operand, w: Operand, parameters: Iterable[Operand]) -> bool:
    """What a convolution ties; ``parameters`` have a number for each output channel. Returns: are inputs summed over?

    They are not where they only go together with the outputs.
    """
    y, groups = site.y, int(site.attr("group", 1))
    site.pass_on(x, y, [0])
    for p in parameters:
        site.equal(p[0], y[1])
    across, within = (x, y) if site.node.op == "ConvTranspose" else (y, x)
    site.equal(w[0], across[1])
    if groups == 1:
        site.equal(w[1], within[1])
        return True
    by_group = [side[1].reshape(groups, -1) for side in (x, y)]
    if groups >= max(x.shape[1], y.shape[1]) // groups:
        # Many small groups: a group goes whole, its inputs with its outputs.
        for side in by_group:
            site.equal(side.ravel(), np.repeat(by_group[0][:, 0], side.shape[1]))
        return False
    # Few large groups: the same places of every group go, so that groups stay equally large.
    for side in by_group:
        site.equal(side.ravel(), np.tile(side[0], groups))
    site.equal(w[1], within[1].reshape(groups, -1)[0])
    return True


@rules.on("Gemm", "com.microsoft.FusedGemm")
def gemm(site: Site) -> None:
    """y (M, N) = a (M, K) b (K, N) + c, a and b maybe transposed, c broadcast."""
    a, b, *c = site.operands()
    row, inner_a = (1, 0) if site.attr("transA", 0) else (0, 1)
    inner_b, column = (1, 0) if site.attr("transB", 0) else (0, 1)
    site.equal(a[row], site.y[0])
    site.equal(b[column], site.y[1])
    site.contract(a, inner_a, b, inner_b)
    for x in c:
        spread(site, x, site.y)


@rules.on("MatMul")
def matmul(site: Site) -> None:
    """y (..., M, N) = a (..., M, K) b (..., K, N), batch axes broadcast; a vector has no M, or no N."""
    a, b = site.operands()
    multiply(site, a, b)
    site.contract(a, -1, b, -2 if b.rank > 1 else -1)


@rules.on("com.microsoft.FusedMatMul")
def fused_matmul(site: Site) -> None:
    """MatMul of matrices that may be transposed first; moved batch axes stay unspoken for."""
    a, b = site.operands()
    if a.rank < 2 or b.rank < 2 or site.attr("transBatchA", 0) or site.attr("transBatchB", 0):
        return
    row, inner_a = (-1, -2) if site.attr("transA", 0) else (-2, -1)
    inner_b, column = (-1, -2) if site.attr("transB", 0) else (-2, -1)
    site.equal(a[row], site.y[-2])
    site.equal(b[column], site.y[-1])
    site.contract(a, inner_a, b, inner_b)
    for x in (a, b):
        site.pass_on(x, site.y, [-k for k in range(3, x.rank + 1) if x.shape[-k] == site.y.shape[-k]])


def multiply(site: Site, a: Operand, b: Operand) -> None:
    """What a product of matrices ties, but for the axes that are summed over."""
    y = site.y
    matrix_axes = (a.rank > 1) + (b.rank > 1)
    if a.rank > 1:
        site.equal(a[-2], y[-matrix_axes])
    if b.rank > 1:
        site.equal(b[-1], y[-1])
    for x in (a, b):
        for k in range(3, x.rank + 1):
            at = k - 2 + matrix_axes
            if x.shape[-k] == y.shape[-at]:
                site.equal(x[-k], y[-at])


@rules.on("Einsum")
def einsum(site: Site) -> None:
    """Letters name axes; those that the output lacks are summed over. A length of 1 against a longer one stays."""
    xs = site.operands()
    terms, result = _letters(str(site.attr("equation")), [x.rank for x in xs])
    for letter in dict.fromkeys("".join(terms)):
        places = [(x, k) for x, term in zip(xs, terms, strict=True) for k, c in enumerate(term) if c == letter]
        if len({x.shape[k] for x, k in places}) > 1:
            continue
        if letter in result:
            places.append((site.y, result.index(letter)))
        else:
            site.ends(*min(places, key=lambda place: place[0].constant))
        first, axis = places[0]
        for x, k in places:
            site.equal(first[axis], x[k])


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The terms of an Einsum, with letters of their own for what an ellipsis stands for, and the output's."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = max(0, *(rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True)))
    others = "".join(map(chr, range(0xE000, 0xE000 + hidden)))
    if not arrow:
        result = "..." + "".join(sorted(c for c in set(left) - set(",.") if left.count(c) == 1))
    return [
        t.replace("...", others[hidden - (rank - len(t.replace("...", ""))) :])
        for t, rank in zip(terms, ranks, strict=True)
    ], result.replace("...", others)
