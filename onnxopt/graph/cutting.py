"""Take classes of channels out of a model, or put zeros in their place.

Cutting compresses constants along every axis, corrects the sizes that operators spell out, and leaves the model's
boundary alone. Masking is what a cut must be equal to: the whole model, in which the same channels are zero wherever
they are summed over. Comparing the two proves the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.graph import parameters, shapes
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.ir import Constant, Node, Tensor, Variable, is_constant
from onnxopt.graph.labels import Labels
from onnxopt.graph.model import Model

Mask = npt.NDArray[np.bool_]


class Cut:
    """Which classes go, seen from the axes of tensors."""

    def __init__(self, coupling: Coupling, classes: Labels) -> None:
        self.coupling = coupling
        self._stays = np.ones(coupling.count + 1, bool)
        self._stays[classes] = False
        self._stays[0] = True

    def input(self, node: Node, slot: int, axis: int) -> Mask:
        """By index along an axis of an input: does it stay?"""
        return np.asarray(self._stays[self.coupling.input(node, slot, axis)])

    def output(self, node: Node, axis: int, slot: int = 0) -> Mask:
        """By index along an axis of an output: does it stay?"""
        return np.asarray(self._stays[self.coupling.output(node, axis, slot)])

    def shortened(self) -> set[int]:
        """The nodes (their ``id``) that sum over fewer channels than before."""
        return {id(node) for node, slot, axis in self.coupling.contractions if not self.input(node, slot, axis).all()}

    def apply(self, model: Model) -> None:
        """Remove the classes from the model that the coupling was made of. The coupling is stale afterwards."""
        made: dict[tuple[int, bytes], Constant] = {}
        for node in list(model.graph.nodes):
            for slot, tensor in enumerate(node.outputs):
                if isinstance(tensor, Variable) and tensor.shape is not None:
                    self._resize(node, slot, tensor)
            before = list(node.inputs)
            after = [self._compressed(model, node, slot, t, made) for slot, t in enumerate(before)]
            if node.is_standard and node.op in _CORRECTIONS:
                _CORRECTIONS[node.op](model, node, self)
            for slot, (old, new) in enumerate(zip(before, after, strict=True)):
                if new is not old and node.inputs[slot] is old:
                    node.inputs[slot] = new

    def masked(self, model: Model) -> Model:
        """A copy of the model that the coupling was made of, with the classes zero wherever they are summed over."""
        result = model.clone()
        types = shapes.specs(model)
        by_output = {t.name: n for n in result.graph.nodes for t in n.outputs if t.name}
        for place in self.coupling.contractions:
            stays = self.input(place.node, place.slot, place.axis)
            if stays.all():
                continue
            node = next(by_output[t.name] for t in place.node.outputs if t.name)
            x = node.inputs[place.slot]
            rank = self.coupling.rank(place.node.inputs[place.slot])
            dtype = types[x.name].dtype if x.name in types else x.dtype or np.float32
            mask = stays.reshape([-1 if k == place.axis else 1 for k in range(rank)]).astype(dtype)
            y = Variable(result.fresh_name(f"{x.name}_masked"), x.dtype)
            factors = [x, result.constant(f"{x.name}_mask", mask)]
            result.graph.nodes.append(Node("Mul", result.fresh_name(f"{node.name}_mask"), factors, [y]))
            node.inputs[place.slot] = y
        result.tidy()
        return result

    def _resize(self, node: Node, slot: int, tensor: Variable) -> None:
        if len(tensor.shape) == self.coupling.rank(tensor):
            new = [int(self.output(node, k, slot).sum()) for k in range(len(tensor.shape))]
            tensor.shape = [n if isinstance(d, int) else d for d, n in zip(tensor.shape, new, strict=True)]

    def _compressed(
        self, model: Model, node: Node, slot: int, tensor: Tensor, made: dict[tuple[int, bytes], Constant]
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


def _group(model: Model, node: Node, cut: Cut) -> None:
    if node.attrs.get("group", 1) > 1:
        side = cut.input(node, 0, 1) if node.op == "Conv" else cut.output(node, 1)
        node.attrs["group"] = int(side.sum() // cut.input(node, 1, 1).sum())


def _split(model: Model, node: Node, cut: Cut) -> None:
    axis = int(node.attrs.get("axis", 0))
    stays = [cut.output(node, axis, slot) for slot in range(len(node.outputs))]
    if all(s.all() for s in stays):
        return
    node.attrs.pop("num_outputs", None)
    parameters.write(model, node, 1, "split", [int(s.sum()) for s in stays], as_input=model.opset >= 13)


def _slice(model: Model, node: Node, cut: Cut) -> None:
    """Bounds in steps of one move; others become a Gather, since what is left need not lie at even distances."""
    rank = cut.coupling.rank(node.inputs[0])
    taken = parameters.slices(node, rank) or {}
    bounds = [parameters.read(node, i, name) or [] for i, name in ((1, "starts"), (2, "ends"))]
    changed = False
    for at, (axis, part) in enumerate(taken.items()):
        before = cut.input(node, 0, axis)
        if part is None or before.all():
            continue
        changed = True
        if part.step == 1:
            start, end, _ = part.indices(len(before))
            bounds[0][at], bounds[1][at] = int(before[:start].sum()), int(before[: max(start, end)].sum())
        else:
            picked = np.arange(len(before))[part]
            _gather_before(model, node, axis, _new_places(before)[picked[before[picked]]])
            bounds[0][at], bounds[1][at] = 0, len(before)
            steps = [1 if k == axis or s is None else s.step for k, s in taken.items()]
            parameters.write(model, node, 4, "steps", steps)
    if changed:
        parameters.write(model, node, 1, "starts", bounds[0])
        parameters.write(model, node, 2, "ends", bounds[1])


def _gather_before(model: Model, node: Node, axis: int, places: Labels) -> None:
    x = node.inputs[0]
    y = Variable(model.fresh_name(f"{x.name}_picked"), x.dtype)
    indices = model.constant(f"{node.name}_indices", places.astype(np.int64))
    gather = Node("Gather", model.fresh_name(f"{node.name}_gather"), [x, indices], [y], {"axis": axis})
    model.graph.nodes.append(gather)
    node.inputs[0] = y


def _gather(model: Model, node: Node, cut: Cut) -> None:
    picked = node.inputs[1]
    axis = int(node.attrs.get("axis", 0))
    before = cut.input(node, 0, axis)
    if is_constant(picked) and not before.all():
        places = np.asarray(picked.values)
        new = _new_places(before)[places]
        if places.ndim == 1:
            new = new[cut.output(node, axis)]
        node.inputs[1] = model.constant(picked.name, new.astype(places.dtype))


def _pad(model: Model, node: Node, cut: Cut) -> None:
    amounts = parameters.pads(node, cut.coupling.rank(node.inputs[0])) or {}
    new = []
    for axis, (before, after) in amounts.items():
        stays = cut.output(node, axis)
        changed = before >= 0 and after >= 0 and not stays.all()
        new.append((int(stays[:before].sum()), int(stays[len(stays) - after :].sum())) if changed else (before, after))
    if new != list(amounts.values()):
        parameters.write(model, node, 1, "pads", [n[0] for n in new] + [n[1] for n in new])


def _sizes_at(slot: int) -> Callable[[Model, Node, Cut], None]:
    """Sizes spelled out for the output's axes: all, or the last ones, or those of the attribute ``axes``."""

    def correct(model: Model, node: Node, cut: Cut) -> None:
        sizes = parameters.read(node, slot, "")
        if sizes is None:
            return
        rank = cut.coupling.rank(node.outputs[0])
        axes: Iterable[Any] = node.attrs.get("axes", range(rank - len(sizes), rank))
        stays = [cut.output(node, int(k)) for k in axes]
        new = [int(s.sum()) if n == len(s) else n for n, s in zip(sizes, stays, strict=True)]
        if new != sizes:
            parameters.write(model, node, slot, "sizes", new)

    return correct


def _new_places(stays: Mask) -> Labels:
    return np.asarray(np.cumsum(stays) - 1, np.intp)


_CORRECTIONS: dict[str, Callable[[Model, Node, Cut], None]] = {
    "Conv": _group,
    "ConvTranspose": _group,
    "Expand": _sizes_at(1),
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _sizes_at(1),
    "Resize": _sizes_at(3),
    "Slice": _slice,
    "Split": _split,
}
