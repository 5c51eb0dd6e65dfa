"""Round the weights of sites and write them: with data for what reaches each, else for the weights alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.observed import Place, observed
from onnxopt.core.pass_ import label
from onnxopt.graph.model import Model
from onnxopt.numerics.blocks import Coded
from onnxopt.weights import weight_only
from onnxopt.weights.weight_only_coding import Chosen, Coding
from onnxopt.weights.weight_only_fit import Fitted, fit
from onnxopt.weights.weight_only_forms import Writer


def write(
    model: Model,
    chosen: Sequence[Chosen],
    coding: Coding,
    context: Context,
    samples: int,
    left: dict[str, str],
    *,
    to_nearest: bool,
) -> dict[int, dict[str, Any]]:
    """Write the weights of each site, as soon as those that are solved for are known; figures by the ``id`` of its
    node. Of the others one weight at a time is held in memory; ``left`` gains those that cannot be coded."""
    by_data = not to_nearest and not context.dataset.synthetic
    solved = weight_only.solvable(model, [c.site for c in chosen]) if by_data else []
    by_node = {id(c.site.node): c for c in chosen}
    fitted = dict(_with_data(model, [by_node[id(s.node)] for s in solved], coding, context, samples))
    groups = _alike([c for c in chosen if id(c.site.node) not in fitted])
    layers: dict[int, dict[str, Any]] = {}
    for site in solved:
        found = fitted[id(site.node)]
        told: dict[str, Any] = {"error": found.error, "nearest_error": found.nearest, "rounding": found.rounding}
        layers |= _write(model, [by_node[id(site.node)]], coding, found.coded, told)
    for group in context.track(groups, "quant-weights"):
        first = group[0]
        if why := weight_only.unfit(first.site):
            left |= {label(c.site.node): why for c in group}
            continue
        rounding = "nearest" if to_nearest else weight_only.without_data([c.site for c in group])
        coded, error = weight_only.encode(first.site, first.format, first.block, rounding)
        model.release()
        layers |= _write(model, group, coding, coded, {"weight_error": error, "rounding": rounding})
    return layers


def _with_data(
    model: Model, chosen: Sequence[Chosen], coding: Coding, context: Context, samples: int
) -> Iterator[tuple[int, Fitted]]:
    """By the ``id`` of the node, in the order of the graph; each layer makes good for those before it."""
    by_node = {id(c.site.node): c.site for c in chosen}
    places = [Place.whole(c.site.node) for c in chosen]
    for place, rows in observed(model, model.clone(), places, context, samples, "quant-weights"):
        layer = place.layer
        weight, bias = unrolled.read(layer)
        blocks = by_node[id(layer)].blocks(coding.block)
        found = fit(weight, bias, unrolled.has_bias(model, layer), rows, blocks, coding.format)
        unrolled.write(model, layer, found.weight(), found.bias)
        yield id(layer), found


def _alike(chosen: Sequence[Chosen]) -> list[list[Chosen]]:
    """Those together that want the same weights in the same coding."""
    groups: defaultdict[Any, list[Chosen]] = defaultdict(list)
    for one in chosen:
        site = one.site
        groups[id(site.weight), site.by_row, site.kernel, site.factor, one.format, one.block].append(one)
    return list(groups.values())


def _write(
    model: Model, chosen: Sequence[Chosen], coding: Coding, coded: Coded, told: dict[str, Any]
) -> dict[int, dict[str, Any]]:
    """Let these sites read one coding; their figures with what is ``told`` of it."""
    figures = {id(c.site.node): _figures(c) | told for c in chosen}
    writer = Writer(model, coding.format, coding.level, coded)
    tied = any(c.site.kind == "product" and c.form == "nbits" for c in chosen)
    for one in chosen:
        writer.write(one.site, one.form, tied)
    return figures


def _figures(chosen: Chosen) -> dict[str, Any]:
    return {
        "layer": label(chosen.site.node),
        "form": chosen.form,
        "bits": chosen.format.bits,
        "bytes": list(chosen.bytes),
    }
