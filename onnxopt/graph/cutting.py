"""Take classes of channels out of a model, or put zeros in their place.

Cutting compresses constants along every axis, corrects the sizes that operators spell out, and leaves the model's
boundary alone. Masking is what a cut must be equal to: the whole model, in which the same channels are zero wherever
they are summed over. Comparing the two proves the cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from onnxopt.graph import corrections, shapes
from onnxopt.graph.corrections import Mask
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.ir import Constant, Graph, Node, Tensor, Variable, is_constant
from onnxopt.graph.labels import Labels
from onnxopt.graph.model import Model
from onnxopt.graph.signature import TensorSpec


class Cut:
    """Which classes go, seen from the axes of tensors."""

    def __init__(self, coupling: Coupling, classes: Labels) -> None:
        self.coupling = coupling
        self._stays = np.ones(coupling.count + 1, bool)
        self._stays[classes] = False
        self._stays[0] = True
        self._types: dict[str, TensorSpec] = {}

    def input(self, node: Node | Graph, slot: int, axis: int) -> Mask:
        """By index along an axis of an input: does it stay?"""
        return np.asarray(self._stays[self.coupling.input(node, slot, axis)])

    def output(self, node: Node | Graph, axis: int, slot: int = 0) -> Mask:
        """By index along an axis of an output: does it stay?"""
        return np.asarray(self._stays[self.coupling.output(node, axis, slot)])

    def shortened(self) -> set[int]:
        """The nodes (their ``id``) that sum over fewer channels than before."""
        return {id(node) for node, slot, axis in self.coupling.contractions if not self.input(node, slot, axis).all()}

    def dtype(self, tensor: Tensor) -> np.dtype[Any]:
        """The type of a tensor of the model that is being cut or masked; float32 where it is not known."""
        known = self._types[tensor.name].dtype if tensor.name in self._types else tensor.dtype
        return np.dtype(known or np.float32)

    def apply(self, model: Model) -> None:
        """Remove the classes from the model that the coupling was made of. The coupling is stale afterwards."""
        made: dict[tuple[int, bytes], Constant] = {}
        self._types = shapes.specs(model)
        for graph in list(model.graphs()):
            if graph is not model.graph:
                self._resize(graph, graph.inputs)
                graph.outputs[:] = [self._compressed(model, graph, k, t, made) for k, t in enumerate(graph.outputs)]
            for node in list(graph.nodes):
                self._resize(node, node.outputs)
                before = list(node.inputs)
                after = [self._compressed(model, node, slot, t, made) for slot, t in enumerate(before)]
                if node.kind in corrections.table:
                    graph.nodes += corrections.table[node.kind](model, node, self) or ()
                for slot, (old, new) in enumerate(zip(before, after, strict=True)):
                    if new is not old and node.inputs[slot] is old:
                        node.inputs[slot] = new

    def masked(self, model: Model) -> Model:
        """A copy of the model that the coupling was made of, with the classes zero wherever they are summed over."""
        result = model.clone()
        self._types = shapes.specs(model)
        by_output = {t.name: (g, n) for g in result.graphs() for n in g.nodes for t in n.outputs if t.name}
        for place in self.coupling.contractions:
            stays = self.input(place.node, place.slot, place.axis)
            if stays.all():
                continue
            graph, node = next(by_output[t.name] for t in place.node.outputs if t.name)
            x = node.inputs[place.slot]
            rank = self.coupling.rank(place.node.inputs[place.slot])
            mask = stays.reshape([-1 if k == place.axis else 1 for k in range(rank)])
            if is_constant(x):
                node.inputs[place.slot] = result.constant(x.name, np.where(mask, x.values, np.zeros((), x.dtype)))
                continue
            dtype = self.dtype(x)
            y = Variable(result.fresh_name(f"{x.name}_masked"), x.dtype)
            # Not a product, which makes NaN of what has overflown.
            kept, zero = result.constant(f"{x.name}_mask", mask), result.constant(f"{x.name}_zero", np.zeros((), dtype))
            graph.nodes.append(Node("Where", result.fresh_name(f"{node.name}_mask"), [kept, x, zero], [y]))
            node.inputs[place.slot] = y
        result.tidy()
        return result

    def _resize(self, node: Node | Graph, tensors: Iterable[Tensor]) -> None:
        for slot, tensor in enumerate(tensors):
            if isinstance(tensor, Variable) and tensor.shape and len(tensor.shape) == self.coupling.rank(tensor):
                new = [int(self.output(node, k, slot).sum()) for k in range(len(tensor.shape))]
                tensor.shape = [n if isinstance(d, int) else d for d, n in zip(tensor.shape, new, strict=True)]

    def _compressed(
        self, model: Model, node: Node | Graph, slot: int, tensor: Tensor, made: dict[tuple[int, bytes], Constant]
    ) -> Tensor:
        """A constant without what goes; uses of one constant that lose the same share the result."""
        if not is_constant(tensor):
            return tensor
        masks = [self.input(node, slot, k) for k in range(len(tensor.shape))]
        if all(m.all() for m in masks):
            return tensor
        key = (id(tensor), b"".join(m.tobytes() for m in masks))
        if key not in made:
            made[key] = model.constant(tensor.name, tensor.values[np.ix_(*masks)])
            model.release()
        return made[key]
