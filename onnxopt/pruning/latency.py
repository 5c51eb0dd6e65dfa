"""The time of a model as a function of how many channels stay, from a table of timed layers.

What a layer takes is its time as it is, times what it would take with other inputs alone, times what with other
outputs alone, both as shares: so two rows of the table are enough, and not all pairs. What else a model spends its
time on stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from onnxopt.core.context import Context
from onnxopt.errors import ExecutionError, PassError
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.labels import Labels
from onnxopt.graph.model import Model
from onnxopt.pruning.costs import Axis, Costs, Curve
from onnxopt.runtime.layer_times import Layer, LayerTimes
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import fast_counts
from onnxopt.runtime.timing import seconds

_POINTS = 32


def latency(
    model: Model, coupling: Coupling, blocks: Sequence[Labels], shapes: Mapping[str, tuple[int, ...]], context: Context
) -> Costs:
    """Seconds for a run of ``context.latency_batch`` samples on this machine."""
    feed = next(iter(context.dataset.batches(context.latency_batch, stop=context.latency_batch)))
    measured = seconds(Session(model, threads=context.threads), feed)
    times = LayerTimes(context.threads, context.cache.folder if context.cache is not None else None)
    step = context.target.channel_step
    first = model.inputs[0].name
    # Shapes are those of one sample, or of as many as the graph fixes.
    more = feed[first].size // max(prod(shapes[first]), 1)
    layers = [(node, Layer.of(node, shapes)) for node in model.graph.nodes]
    known = [(node, _batched(layer, more)) for node, layer in layers if layer is not None and _is_plain(layer)]
    rows = {id(node): _variants(layer, step) for node, layer in known}
    try:
        times.measure(v for node, _ in known for side in rows[id(node)] for v in side.values())
    except ExecutionError as error:
        raise PassError(f"the layers cannot be timed on this machine: {error}; ask for macs instead") from error
    terms = []
    for node, layer in known:
        whole = times.seconds(layer)
        if not whole:
            continue
        channel = 1 if layer.op.startswith("Conv") else -1
        classes = (coupling.input(node, 0, channel), coupling.output(node, channel))
        axes = [
            Axis(c, _curve({n: times.seconds(v) / whole for n, v in side.items()}))
            for c, side in zip(classes, rows[id(node)], strict=True)
            if side
        ]
        terms.append((whole, axes))
    timed = sum(size for size, _ in terms)
    scale = min(1.0, measured / max(timed, 1e-12))
    return Costs(blocks, [(size * scale, axes) for size, axes in terms], coupling.count, max(measured - timed, 0.0))


def _batched(layer: Layer, times: int) -> Layer:
    return replace(layer, input=(layer.input[0] * max(times, 1), *layer.input[1:]))


def _is_plain(layer: Layer) -> bool:
    """Not in groups, or depthwise."""
    return layer.group == 1 or layer.group == layer.input[1] == layer.outputs


def _variants(layer: Layer, step: int) -> tuple[dict[int, Layer], dict[int, Layer]]:
    """The layer with other numbers of inputs, and with other numbers of outputs; depthwise, both at once."""
    inputs, outputs = (_counts(n, step) for n in (layer.input[1], layer.outputs))
    if layer.group > 1:
        return {n: layer.resized(n, n) for n in inputs}, {}
    return (
        {n: layer.resized(n, layer.outputs) for n in inputs},
        {n: layer.resized(layer.input[1], n) for n in outputs},
    )


def _counts(channels: int, step: int) -> list[int]:
    found = fast_counts(channels, step)
    picked = np.unique(np.linspace(0, len(found) - 1, min(len(found), _POINTS)).round().astype(int))
    return [found[i] for i in picked]


def _curve(factors: Mapping[int, float]) -> Curve:
    """By share of the channels; more channels never take less. None take no time."""
    counts = np.array([0, *factors])
    rising = np.minimum.accumulate(np.array([0.0, *factors.values()])[::-1])[::-1]
    return tuple((counts / counts[-1]).tolist()), tuple(rising.tolist())
