"""Rules of the operators that only move indices about, or repeat them: labels move as the indices do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from onnxopt.graph import parameters
from onnxopt.graph.dims import Size
from onnxopt.graph.labels import Labels, Operand, Rules, Site

rules = Rules()


@rules.on("Concat")
def concat(site: Site) -> None:
    """One after the other."""
    concat_of(site, site.operands())


def concat_of(site: Site, xs: Sequence[Operand]) -> None:
    """These, one after the other, are the output."""
    y = site.y
    axis = range(y.rank)[int(site.attr("axis", 1))]
    site.equal(np.concatenate([x[axis] for x in xs]), y[axis])
    for x in xs:
        site.pass_on(x, y, _but(axis, y))


@rules.on("Split")
def split(site: Site) -> None:
    """The reverse. A piece that nobody takes leaves a gap, which stays."""
    x = site.operands()[0]
    axis = range(x.rank)[int(site.attr("axis", 0))]
    if sum(y.shape[axis] for y in site.outputs) == x.shape[axis]:
        site.equal(x[axis], np.concatenate([y[axis] for y in site.outputs]))
    for y in site.outputs:
        site.pass_on(x, y, _but(axis, x))


@rules.on("Slice")
def slice_(site: Site) -> None:
    """Indexing, along axes whose bounds are known."""
    x, y = site.operands()[0], site.y
    taken = parameters.slices(site.node, x.rank)
    for k in range(x.rank) if taken is not None else ():
        part = (taken or {}).get(k, slice(None))
        if part is not None:
            site.equal(x[k][part], y[k])


@rules.on("Pad")
def pad(site: Site) -> None:
    """What is added has new labels, as long as it is one value and not a copy of what is there."""
    x, y = site.operands()[0], site.y
    amounts = parameters.pads(site.node, x.rank)
    for k in range(x.rank) if amounts is not None else ():
        before, after = (amounts or {}).get(k, (0, 0))
        if before == after == 0 or (site.attr("mode", "constant") == "constant" and min(before, after) >= 0):
            site.equal(x[k], y[k][before : before + x.shape[k]])


@rules.on("Gather")
def gather(site: Site) -> None:
    """Constant indices pick labels; a single one holds what it picks. Computed ones may ask for any index."""
    x, picked = site.operands()
    axis = range(x.rank)[int(site.attr("axis", 0))]
    for k in _but(axis, x):
        site.equal(x[k], site.y[k if k < axis else k + picked.rank - 1])
    if picked.values is None:
        for k in range(picked.rank):
            site.equal(picked[k], site.y[axis + k])
    elif picked.rank == 1:
        site.equal(x[axis][picked.values], site.y[axis])
    elif picked.rank == 0:
        site.freeze(x[axis][picked.values.reshape(1)], "picks one of them")


@rules.on("GatherElements", "Scatter", "ScatterElements")
def elements(site: Site) -> None:
    """Along all axes but one an index stays itself; along that one any may be asked for."""
    x, *others = site.operands()
    for k in _but(range(x.rank)[int(site.attr("axis", 0))], x):
        if all(other.shape[k] == x.shape[k] for other in others):
            for other in (*others, site.y):
                site.equal(x[k], other[k])


@rules.on("GatherND", "ScatterND")
def whole_slices(site: Site) -> None:
    """What lies behind the axes that are indexed comes and goes as a whole; it is last in all tensors."""
    x, indices, *updates = site.operands()
    for k in range(int(site.attr("batch_dims", 0)) + indices.shape[-1] - x.rank, 0):
        for other in (*updates, site.y):
            site.equal(x[k], other[k])


@rules.on("Transpose")
def transpose(site: Site) -> None:
    """Axes change places."""
    x = site.operands()[0]
    for to, k in enumerate(site.attr("perm", range(x.rank)[::-1])):
        site.equal(x[k], site.y[to])


@rules.on("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def reshape(site: Site) -> None:
    """Through the index map, axis by axis where sizes factor. The shape that is asked for must be able to follow."""
    x, y = site.operands()[0], site.y
    able = _follows(site, x, y) if site.node.op == "Reshape" else [True] * y.rank
    for k in [k for k in range(y.rank) if y.shape[k] == 1 or not able[k]]:
        site.freeze(y[k], "asks for their number")
    for ours, theirs in _factors(x.shape, y.shape):
        if all(able[k] for k in theirs):
            _refold(site, [x[k] for k in ours], [y[k] for k in theirs])


def _refold(site: Site, *sides: Sequence[Labels]) -> None:
    """Axes that hold the same, folded in two ways: both are made of the factors between all their borders."""
    borders = [np.cumprod([len(axis) for axis in side], dtype=np.int64) for side in sides]
    steps = np.unique(np.concatenate([[1], *borders]))
    if (steps[1:] % steps[:-1]).any():
        for axis in (axis for side in sides for axis in side):
            site.freeze(axis, "folds them in a way that has no factors")
        return
    factors = site.fresh(*(steps[1:] // steps[:-1]).tolist())
    for side, own in zip(sides, borders, strict=True):
        for axis, (start, end) in zip(side, pairwise([0, *np.searchsorted(steps, own)]), strict=True):
            site.choose(axis, factors[start:end])


def _factors(a: Sequence[int], b: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Axes of ``a`` and of ``b`` that hold the same: the smallest groups of equal product, without lengths 1."""
    axes = [[k for k, n in enumerate(shape) if n != 1] for shape in (a, b)]
    ends = [np.cumprod([shape[k] for k in long], dtype=np.int64) for shape, long in zip((a, b), axes, strict=True)]
    if 0 in (*a, *b):
        return
    common = np.intersect1d(ends[0], ends[1])
    cuts = [[0, *(np.searchsorted(e, common) + 1)] for e in ends]
    for (i, j), (m, n) in zip(pairwise(cuts[0]), pairwise(cuts[1]), strict=True):
        yield axes[0][i:j], axes[1][m:n]


def _follows(site: Site, x: Operand, y: Operand) -> list[bool]:
    """Can each number of a Reshape's target be kept right? Sizes tie what was measured, 0 ties the same axis of x."""
    numbers = site.numbers(1)
    if numbers is None or len(numbers) != y.rank or (site.attr("allowzero", 0) and 0 in numbers):
        return [False] * y.rank
    for k, number in enumerate(numbers):
        if number == 0:
            site.equal(x[k], y[k])
        elif isinstance(number, Size):
            site.equal(site.axis_of(number), y[k])
    return [number is not None for number in numbers]


@rules.on("Expand")
def expand(site: Site) -> None:
    """Broadcasting to sizes that are literals, or were measured along the same axis."""
    x, y = site.operands()[0], site.y
    numbers = site.numbers(1)
    for k in range(1, y.rank + 1) if numbers is not None else ():
        number = numbers[-k] if numbers is not None and k <= len(numbers) else 1
        if number is None:
            continue
        if isinstance(number, Size):
            site.equal(site.axis_of(number), y[-k])
        if k <= x.rank and x.shape[-k] == y.shape[-k]:
            site.equal(x[-k], y[-k])
        elif y.shape[-k] > 1:
            _ = y[-k]


@rules.on("ConstantOfShape")
def constant_of_shape(site: Site) -> None:
    """As long as what was measured, or as a literal says."""
    for k, number in enumerate(site.numbers(0) or ()):
        if isinstance(number, Size):
            site.equal(site.axis_of(number), site.y[k])
        elif number is not None:
            _ = site.y[k]


@rules.on("Shape")
def shape(site: Site) -> None:
    """Measuring changes nothing; whoever reads the sizes is asked about them."""
    x = site.operands()[0]
    for k in range(x.rank if not x.constant else 0):
        _ = x[k]


@rules.on("Tile")
def tile(site: Site) -> None:
    """Repetition, a constant number of times."""
    x = site.operands()[0]
    for k, times in enumerate(parameters.read(site.node, 1, "repeats") or ()):
        site.equal(np.tile(x[k], times), site.y[k])


@rules.on("Resize", "Upsample")
def resize(site: Site) -> None:
    """Axes of scale 1 pass; a size that is asked for must be able to follow."""
    x, y = site.operands()[0], site.y
    if site.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        return
    axes = [range(x.rank)[k] for k in site.attr("axes", range(x.rank))]
    site.pass_on(x, y, set(range(x.rank)) - set(axes))
    if site.input(3) is not None and site.attr("keep_aspect_ratio_policy", "stretch") == "stretch":
        for k, number in zip(axes, site.numbers(3) or (), strict=False):
            if x.shape[k] == y.shape[k] and number is not None:
                site.equal(x[k], y[k])
            if isinstance(number, Size):
                site.equal(site.axis_of(number), y[k])
        return
    scales = site.input(2 if site.node.op == "Resize" and site.opset > 10 else 1)
    factors = site.attr("scales", ()) if scales is None else () if scales.values is None else scales.values
    for k, factor in zip(axes, factors, strict=False):
        if factor == 1:
            site.equal(x[k], y[k])


@rules.on("DepthToSpace")
def depth_to_space(site: Site) -> None:
    """All the channels that become one channel's pixels go together."""
    x, y = site.operands()[0], site.y
    by_pixel = x[1].reshape(-1, y.shape[1]) if site.attr("mode", "DCR") == "DCR" else x[1].reshape(y.shape[1], -1).T
    site.equal(by_pixel.ravel(), np.tile(y[1], len(by_pixel)))


@rules.on("SpaceToDepth")
def space_to_depth(site: Site) -> None:
    """The reverse."""
    x, y = site.operands()[0], site.y
    site.equal(y[1], np.tile(x[1], y.shape[1] // x.shape[1]))


@rules.on("GridSample", "MaxRoiPool", "RoiAlign")
def sample(site: Site) -> None:
    """Channel by channel."""
    site.equal(site.operands()[0][1], site.y[1])


def _but(axis: int, x: Operand) -> list[int]:
    return [k for k in range(x.rank) if k != axis]
