"""Rules of normalisations.

Where values are divided by what all of them have in common, that is a sum over channels, to which zeros add nothing;
``corrections_counts`` keeps what the sum is divided by. LayerNormalization takes a mean away first, and channels at
zero are then no longer zero: its axes stay.
"""

from __future__ import annotations

import numpy as np

from onnxopt.graph.coupling_rules import spread
from onnxopt.graph.labels import Rules, Site

rules = Rules()


@rules.on("BatchNormalization", "InstanceNormalization")
def by_channel(site: Site) -> None:
    """Each channel by itself; training outputs are not known here."""
    x, *parameters = site.operands()
    if len(site.outputs) > 1:
        return
    site.pass_on(x, site.y, [0, 1] if site.node.op == "InstanceNormalization" else range(x.rank))
    for p in parameters:
        site.equal(p[0], x[1])


@rules.on("GroupNormalization")
def by_group(site: Site) -> None:
    """Whole groups go; scale and bias have a number for each channel, or before operator set 21 for each group."""
    x, *parameters = site.operands()
    site.pass_on(x, site.y, [0, 1])
    groups = x[1].reshape(int(site.attr("num_groups")), -1)
    site.equal(groups.ravel(), np.repeat(groups[:, 0], groups.shape[1]))
    for p in parameters:
        site.equal(p[0], groups[:, 0] if len(p[0]) == len(groups) else x[1])


@rules.on("RMSNormalization", "SimplifiedLayerNormalization")
def root_mean_square(site: Site) -> None:
    """x / sqrt(mean(x^2) + epsilon) * scale, over an axis and all behind it."""
    x, scale = site.operands()
    axis = range(x.rank)[int(site.attr("axis", -1))]
    able = scale.constant and len(site.outputs) == 1
    site.pass_on(x, site.y, range(x.rank if able else axis))
    if able:
        spread(site, scale, site.y)
        for k in range(axis, x.rank):
            site.ends(x, k)


@rules.on("com.microsoft.SkipSimplifiedLayerNormalization")
def root_mean_square_of_sum(site: Site) -> None:
    """The same of x + skip + bias over the last axis; the fourth output is that sum."""
    x, skip, scale, *bias = site.operands()
    if not scale.constant or {y.slot for y in site.outputs} - {0, 3}:
        return
    for y in site.outputs:
        for operand in (x, skip, scale, *bias):
            spread(site, operand, y)
    for operand in (x, skip, *bias):
        site.ends(operand, -1)
    site.statements.joins.append(x[-1])


@rules.on("LayerNormalization", "com.microsoft.SkipLayerNormalization")
def layer(site: Site) -> None:
    """The axes before those that are normalised, of x, of what is added to it, of the outputs."""
    x, *others = site.operands()
    for y in (*others, *site.outputs):
        if y.rank == x.rank:
            site.pass_on(
                x, y, [k for k in range(range(x.rank)[int(site.attr("axis", -1))]) if x.shape[k] == y.shape[k]]
            )


@rules.on("LpNormalization")
def length(site: Site) -> None:
    """x / |x|."""
    x = site.operands()[0]
    site.pass_on(x, site.y, range(x.rank))
    site.ends(x, int(site.attr("axis", -1)))


@rules.on("LRN", "MeanVarianceNormalization")
def all_but(site: Site) -> None:
    """LRN mixes neighbouring channels, MeanVarianceNormalization what its axes say."""
    x = site.operands()[0]
    mixed = [1] if site.node.op == "LRN" else [range(x.rank)[k] for k in site.attr("axes", (0, 2, 3))]
    site.pass_on(x, site.y, [k for k in range(x.rank) if k not in mixed])
