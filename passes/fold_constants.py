"""Evaluate now what every run would evaluate to the same: nodes that read only constants, and sizes that are fixed.

ONNX Runtime does the arithmetic, on a model of just those nodes. Left alone are random operators, operators of other
domains, control flow, QuantizeLinear and DequantizeLinear (evaluating those would undo a quantization), whatever makes
an output of a graph, what would make the file notably bigger, and what makes numbers of weights that are stored in
fewer bits, as half floats or codes, if the file would become any bigger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from onnxopt.core.pass_ import Pass, PassResult, Skip, label, option
from onnxopt.graph import foldable, shapes
from onnxopt.graph.ir import Constant, Node, Tensor, detach, is_constant, replace_uses
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array, TensorSpec
from onnxopt.graph.sizes import sizes_read
from onnxopt.runtime.evaluate import evaluate

if TYPE_CHECKING:
    from onnxopt.core.context import Context


@dataclass(frozen=True, kw_only=True)
class FoldConstants(Pass):
    """Replaces nodes whose results are the same in every run by those results; exact."""

    name: ClassVar[str] = "fold-constants"
    exact: ClassVar[bool] = True
    prepare: ClassVar[tuple[str, ...]] = ("freeze-defaults",)

    decode: bool = option(False, "make floats of weights that are stored in fewer bits, as other passes need them")

    def run(self, model: Model, context: Context) -> PassResult:
        kept: dict[Node, str] = {}
        changed = 0
        while True:
            before = changed
            for step in (_hand_on, _fold_sizes, partial(_fold_values, kept=kept, decode=self.decode)):
                if folded := step(model):
                    changed += folded
                    model.tidy()
            model.release()
            if changed == before:
                break
        at_hand = {n for n in model.nodes() if all(is_constant(t) or t.is_empty() for t in n.inputs)}
        skips = [Skip(label(n), why) for n, why in kept.items() if n in at_hand]
        why = "it is an input with a default, which a feed may replace: freeze-defaults:all fixes it"
        skips += [Skip(name, why) for name in model.graph.defaults]
        return PassResult(changed, tuple(skips))


def _hand_on(model: Model) -> int:
    """Let readers of an Identity of a constant read the constant; returns how many such nodes went."""
    found = [n for n in _read_nodes(model) if n.op == "Identity" and n.is_standard and is_constant(n.inputs[0])]
    for node in found:
        replace_uses(node.outputs[0], node.inputs[0])
        detach(node)
    return len(found)


def _read_nodes(model: Model) -> list[Node]:
    """Nodes whose first output is read, and is no output of its graph."""
    boundary = foldable.boundary_ids(model)
    return [n for n in model.nodes() if n.outputs and n.outputs[0].outputs and id(n.outputs[0]) not in boundary]


def _fold_sizes(model: Model) -> int:
    """Make constants of the sizes that are known; returns how many nodes went."""
    specs = shapes.proven(model)
    found = [(n, sizes_read(n, specs)) for n in _read_nodes(model)]
    known = [(n, value) for n, value in found if value is not None]
    for node, value in known:
        _settle({node.outputs[0]: value})
        detach(node)
    return len(known)


def _fold_values(model: Model, kept: dict[Node, str], *, decode: bool) -> int:
    """Make constants of what nodes compute; returns how many nodes went. ``kept`` gains those that stay, and why."""
    specs = shapes.proven(model)
    while candidates := foldable.candidates(model, specs, kept, decode):
        nodes = foldable.first(candidates, specs)
        wanted = foldable.read_elsewhere(nodes)
        values = evaluate(model, nodes, kept)
        if values is None:
            continue
        known = {name: TensorSpec(name, v.dtype, v.shape) for name, v in values.items()}
        unfit = foldable.growing(candidates, {**specs, **known}, decode) | _texts(nodes, values)
        if unfit:
            kept.update(unfit)
            continue
        _settle({t: values[t.name] for t in wanted})
        for node in nodes:
            detach(node)
        return len(nodes)
    return 0


def _texts(nodes: Iterable[Node], values: Mapping[str, Array]) -> dict[Node, str]:
    return {
        n: f"its result is of type {values[t.name].dtype}"
        for n in nodes
        for t in n.outputs
        if t.name in values and values[t.name].dtype.kind not in "fiub"
    }


def _settle(values: Mapping[Tensor, Array]) -> None:
    """Let what reads the tensors read constants of the same names."""
    for tensor, value in values.items():
        replace_uses(tensor, Constant(tensor.name, value))
