"""Recurrent layers, LSTM, GRU and RNN: their hidden units and the weights that make these."""

from __future__ import annotations

import numpy as np

from onnxopt.graph.decoding import already
from onnxopt.graph.ir import Constant, Node, is_constant
from onnxopt.graph.layer import Floats

LAYERS = ("LSTM", "GRU", "RNN")


def is_recurrent(node: Node) -> bool:
    """Is it one of them?"""
    return node.is_standard and node.op in LAYERS


def weights(layer: Node) -> list[Constant]:
    """Those of W (directions, gates x units, inputs) and R (directions, gates x units, units) that are constant."""
    return [t for t in layer.inputs[1:3] if is_constant(t)]


def units(layer: Node) -> int:
    """Hidden units in each direction."""
    return int(layer.inputs[2].shape[2])


def output(layer: Node) -> int:
    """The first output that is there; the last axis of each is the hidden units'."""
    return next(slot for slot, tensor in enumerate(layer.outputs) if not tensor.is_empty())


def filters(layer: Node) -> Floats:
    """The weights behind each hidden unit, in all gates and directions: (units, of W and R together), float64."""
    count = units(layer)
    parts = [w.values.reshape(w.shape[0], -1, count, w.shape[2]) for w in weights(layer)]
    return np.concatenate([np.moveaxis(p, 2, 0).reshape(count, -1).astype(np.float64) for p in parts], axis=1)


def fault(layer: Node) -> str:
    """Why its weights do not tell hidden units apart, to be read after its name; empty if they do."""
    found = weights(layer)
    if len(found) < 2:
        return f"has weights {next(filter(None, map(already, layer.inputs[1:3])), 'that are not constant')}"
    odd = [w.dtype for w in found if w.dtype not in (np.float16, np.float32, np.float64)]
    return f"has weights of type {odd[0]}" if odd else ""
