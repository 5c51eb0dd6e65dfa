"""Rewrite a graph for float16: weights alone, or nodes with what they read and make.

Casts stand only where a tensor goes from a node of one type to a node of the other, once for each tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Skip, label
from onnxopt.core.stream import modest_batch
from onnxopt.graph.ir import Node, Tensor, Variable, is_constant
from onnxopt.graph.model import Model
from onnxopt.runtime.half_kernels import no_half_kernel
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import Target
from onnxopt.weights import half
from onnxopt.weights.half import FLOAT, HALF, Slots

# A weight of fewer bytes saves less than the Cast behind it takes.
_SMALLEST = 512
_ROUNDS = 6
_FEW = 0.1


@dataclass(frozen=True)
class Converted:
    """A model with nodes in float16: how many, how many ONNX Runtime executes as such on the target, how many Casts at
    their borders, what stays float32 and why."""

    model: Model
    nodes: int
    executed: int
    casts: int
    skips: tuple[Skip, ...]


def store_weights(model: Model, least: int = _SMALLEST) -> tuple[int, tuple[Skip, ...]]:
    """Store float32 constants of at least so many bytes as float16, with a Cast behind each.

    Returns how many, and what was left alone.
    """
    outputs = {id(t) for graph in model.graphs() for t in graph.outputs}
    fixed = {id(c) for graph in model.graphs() for c in graph.defaults.values()}
    count, skips = 0, []
    for constant in model.constants():
        if constant.dtype != FLOAT or constant.nbytes < max(least, _SMALLEST) or id(constant) in fixed | outputs:
            continue
        readers = list(constant.outputs)
        if not readers:
            continue
        if why := half.constant_fault(readers[0], -1, constant):
            skips.append(Skip(label(readers[0]), why))
            continue
        small = model.constant(f"{constant.name}.half", half.rounded(constant.values))
        _relink(readers, constant, _cast(model, small, f"{constant.name}.float", FLOAT))
        count += 1
    model.tidy()
    return count, tuple(skips)


def few_bytes(model: Model) -> int:
    """Bytes of a float32 constant that is not among the smallest, which together take a tenth of all bytes."""
    floats = [c for c in model.constants() if c.dtype in (FLOAT, HALF)]
    sizes = np.sort([c.nbytes * FLOAT.itemsize // c.dtype.itemsize for c in floats])
    small = np.cumsum(sizes) <= _FEW * sizes.sum()
    return int(sizes[small.sum()]) if len(sizes) else 0


def convert(model: Model, context: Context, samples: int, *, anyway: bool = False) -> Converted:
    """A copy of a model whose nodes compute in float16, but for those that cannot: at all, or, without ``anyway``, on
    the target.

    What becomes NaN or infinite on the data and was not is made float32 again, with what makes it.
    """
    known = half.types(model, context)
    names = [t.name for t in _floats(model, known)]
    numbers = half.survey(model, names, context, samples)
    kept: dict[str, str] = {}
    for _ in range(_ROUNDS):
        result, made = _attempt(model, known, numbers, kept, context.target, anyway)
        lost = _lost(result.model, made, numbers, context, samples)
        if not lost:
            return result
        kept |= dict.fromkeys(lost, "becomes NaN or infinite in float16")
    return Converted(model, 0, 0, 0, (Skip("model", "NaN or infinity keeps coming up in float16"),))


def draft(model: Model, context: Context, *, anyway: bool = False) -> Model:
    """The same without a look at the numbers: for its time, not its answers."""
    return _attempt(model, half.types(model, context), {}, {}, context.target, anyway)[0].model


def _attempt(
    model: Model,
    known: Mapping[str, np.dtype[Any]],
    numbers: Mapping[str, half.Numbers],
    kept: Mapping[str, str],
    target: Target,
    anyway: bool,
) -> tuple[Converted, dict[str, str]]:
    """The copy, and by the name of each tensor of the copy that became float16 what it was called."""
    copy = model.clone()
    unfit = {n: why for n, x in numbers.items() if (why := x.fault())} | dict(kept)
    chosen, skips = _choose(copy, known, unfit, None if anyway else target)
    executed = sum(not no_half_kernel(n.op, copy.opset, target) for n in chosen)
    writer = _Writer(copy, known)
    for node, slots in chosen.items():
        writer.outputs(node, slots)
    for node, slots in chosen.items():
        writer.inputs(node, slots)
    writer.readers()
    copy.tidy()
    return Converted(copy, len(chosen), executed, writer.casts, tuple(skips)), writer.made


def _choose(
    model: Model, known: Mapping[str, np.dtype[Any]], unfit: Mapping[str, str], target: Target | None
) -> tuple[dict[Node, Slots], list[Skip]]:
    """The nodes that become float16, and why others do not: ``unfit`` tensors, by name with the reason, or no kernel on
    the target, where there is one."""
    chosen: dict[Node, Slots] = {}
    skips = []
    for node in model.graph.nodes:
        slots = half.slots(node, model.opset, known)
        wanted = bool(slots.inputs or slots.outputs)
        why = slots.why or (no_half_kernel(node.op, model.opset, target) if wanted and target is not None else "")
        if why := why or _forbidden(node, slots, unfit):
            skips.append(Skip(label(node), why))
        elif wanted:
            chosen[node] = slots
    outputs = {id(t) for t in model.graph.outputs}
    kept = [island for island in _islands(chosen) if _is_worth(island, chosen, outputs)]
    return {node: chosen[node] for island in kept for node in island}, skips


def _forbidden(node: Node, slots: Slots, unfit: Mapping[str, str]) -> str:
    tensors = [node.inputs[i] for i in slots.inputs] + [node.outputs[i] for i in slots.outputs]
    found = next((t.name for t in tensors if t.name in unfit), "")
    if found:
        return f"'{found}' {unfit[found]}"
    constants = [(i, node.inputs[i]) for i in slots.inputs if is_constant(node.inputs[i])]
    return next((why for i, c in constants if (why := half.constant_fault(node, i, c))), "")


def _islands(chosen: Mapping[Node, Slots]) -> list[list[Node]]:
    """The nodes in groups that hand each other float16 tensors, with a Cast at every way out."""
    islands = []
    left = dict(chosen)
    while left:
        island = [left.popitem()[0]]
        for node in island:
            near = [n for i in chosen[node].inputs for n in node.inputs[i].inputs]
            near += [n for i in chosen[node].outputs for n in node.outputs[i].outputs]
            island += [n for n in dict.fromkeys(near) if left.pop(n, None)]
        islands.append(island)
    return islands


def _is_worth(island: list[Node], chosen: Mapping[Node, Slots], outputs: set[int]) -> bool:
    """Does it hold a weight, or several nodes and no more Casts around them?"""
    read = {id(t): t for n in island for i in chosen[n].inputs if (t := n.inputs[i])}
    made = {id(t): t for n in island for i in chosen[n].outputs if (t := n.outputs[i])}
    if any(is_constant(t) and t.nbytes >= _SMALLEST for t in read.values()):
        return True
    enter = sum(not is_constant(t) for key, t in read.items() if key not in made)
    leave = sum(key in outputs or any(n not in chosen for n in t.outputs) for key, t in made.items())
    return len(island) > 1 and enter + leave <= len(island)


class _Writer:
    """Gives chosen nodes float16 tensors; ``made`` maps their names to those that the float32 tensors had."""

    def __init__(self, model: Model, known: Mapping[str, np.dtype[Any]]) -> None:
        self._model, self._known = model, known
        self._halves: dict[int, Tensor] = {}  # by the float32 tensor
        self._results = {id(t) for graph in model.graphs() for t in graph.outputs}
        self._own: list[tuple[Tensor, Tensor]] = []  # float32 tensors that nodes now make as float16
        self.made: dict[str, str] = {}
        self.casts = 0

    def outputs(self, node: Node, slots: Slots) -> None:
        if node.op == "Cast":
            node.attrs["to"] = int(onnx.TensorProto.FLOAT16)
        for i in slots.outputs:
            old = node.outputs[i]
            new = Variable(self._model.fresh_name(f"{old.name}.half"), HALF, old.shape)
            node.outputs[i] = new
            self._halves[id(old)] = new
            self._own.append((old, new))
            self.made[new.name] = old.name

    def inputs(self, node: Node, slots: Slots) -> None:
        for i in slots.inputs:
            node.inputs[i] = self._half(node.inputs[i])

    def readers(self) -> None:
        """Give float32 back to whoever still reads it; a Cast takes float16 as well."""
        for old, new in self._own:
            _relink([n for n in old.outputs if n.op == "Cast" and n.is_standard], old, new)
            if id(old) in self._results or old.outputs:
                _cast(self._model, new, "", FLOAT, old)
                self.casts += 1

    def _half(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._halves:
            name = f"{tensor.name}.half"
            if is_constant(tensor):
                self._halves[id(tensor)] = self._model.constant(name, half.rounded(tensor.values))
            else:
                self._halves[id(tensor)] = _cast(self._model, tensor, name, HALF)
                self.casts += 1
        return self._halves[id(tensor)]


def _cast(model: Model, source: Tensor, name: str, dtype: np.dtype[Any], made: Tensor | None = None) -> Tensor:
    made = Variable(model.fresh_name(name), dtype, source.shape) if made is None else made
    to = int(onnx.helper.np_dtype_to_tensor_dtype(dtype))
    model.graph.nodes.append(Node("Cast", model.fresh_name(f"{made.name}.cast"), [source], [made], {"to": to}))
    return made


def _relink(nodes: list[Node], old: Tensor, new: Tensor) -> None:
    for node in nodes:
        for i, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[i] = new


def _floats(model: Model, known: Mapping[str, np.dtype[Any]]) -> list[Tensor]:
    """The float32 tensors of the main graph that are not constant."""
    tensors = {t.name: t for n in model.graph.nodes for t in (*n.inputs, *n.outputs) if half.is_float(t, known)}
    own = {t.name for t in (*model.graph.inputs, *(t for n in model.graph.nodes for t in n.outputs))}
    return [t for name, t in tensors.items() if name in own and name not in model.graph.defaults]


def _lost(
    model: Model, made: Mapping[str, str], numbers: Mapping[str, half.Numbers], context: Context, samples: int
) -> list[str]:
    """What the tensors were called that are no longer finite."""
    if not made:
        return []
    copy = rounding(model)
    read = copy.variables()
    session = Session(copy, outputs=[n for n in made if n in read], threads=context.threads, optimize=False)
    found: set[str] = set()
    for feed in context.dataset.batches(modest_batch(context, context.shapes(model)), stop=samples):
        found |= {made[name] for name, value in session.run(feed).items() if not np.isfinite(value).all()}
    return sorted(name for name in found if numbers[name].finite)


def rounding(model: Model) -> Model:
    """A copy that rounds every float16 tensor to float16, run without optimization.

    ONNX Runtime otherwise computes chains of nodes for which it has no float16 kernel in float32, and rounds once. It
    has one for Identity, but takes a lone one into such a chain, so that there are two each.
    """
    copy = model.clone()
    for node in list(copy.graph.nodes):
        for i, tensor in enumerate(node.outputs):
            if tensor.dtype == HALF and not tensor.is_empty():
                names = (copy.fresh_name(f"{tensor.name}.{k}") for k in ("exact", "between"))
                exact, between = (Variable(name, HALF, tensor.shape) for name in names)
                node.outputs[i] = exact
                for source, made in ((exact, between), (between, tensor)):
                    name = copy.fresh_name(f"{source.name}.identity")
                    copy.graph.nodes.append(Node("Identity", name, [source], [made]))
    copy.tidy()
    return copy
