"""Which nodes should run in integers, and which tensors must be quantized for that.

Every operator that has an integer kernel is a matter of cost: left float between integer neighbours it needs a
dequantization before it and a quantization behind it. Layers (Conv, Gemm, MatMul with constant weights) always run in
integers as long as nobody has measured them in both forms.
Which of them to take is a minimum cut: nodes on one side run in integers, nodes on the other in floats, and each tensor
that crosses pays for its conversion, once. (Boykov and Jolly, 2001, label pixels so; here the pixels are nodes.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from types import MappingProxyType

from onnxopt.core.pass_ import Skip, label
from onnxopt.graph.ir import Node, Scope, Tensor, Variable
from onnxopt.graph.model import Model
from onnxopt.numerics.minimum_cut import minimum_cut
from onnxopt.quantization.eligible import Reasons, Sizes, Specs, clamp_limits, fault, is_layer, operands
from onnxopt.quantization.kernels import CLAMPS, KERNELS, Kernel, Kind
from onnxopt.quantization.times import Times

_NONE: Reasons = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Unit:
    """A node that can run in integers, with the Relu or Clip behind it that its quantized output makes superfluous."""

    node: Node
    kernel: Kernel
    clamp: Node | None = None

    @cached_property
    def reads(self) -> tuple[Variable, ...]:
        """What it takes as integers and is computed, each tensor once."""
        taken = operands(self.node, self.kernel)
        return tuple({id(t): t for t in taken if isinstance(t, Variable)}.values())

    @property
    def writes(self) -> tuple[Variable, ...]:
        """What it makes."""
        return tuple((self.clamp or self.node).outputs)

    @property
    def float_output(self) -> bool:
        """Can it give float numbers? Not through a Relu or Clip, which the runtime would compute with in floats."""
        return self.kernel.float_output and self.clamp is None

    @property
    def moves(self) -> bool:
        """Are its outputs on its input's scale?"""
        return self.kernel.kind is Kind.MOVE


@dataclass(frozen=True)
class Placement:
    """``units`` run in integers, in the order of the graph. ``skips`` are layers that do not, with the reason.

    ``sizes`` are the observed shapes, by tensor.
    """

    units: tuple[Unit, ...]
    skips: tuple[Skip, ...]
    sizes: Sizes

    def on(self, model: Model) -> Placement:
        """The same choice for a float model with the same nodes."""
        by_label = {label(node): node for node in model.graph.nodes}
        nodes = [by_label[label(u.node)] for u in self.units]
        clamps = [node.outputs[0].outputs[0] if u.clamp else None for node, u in zip(nodes, self.units, strict=True)]
        units = (Unit(n, u.kernel, clamp) for n, u, clamp in zip(nodes, self.units, clamps, strict=True))
        return replace(self, units=tuple(units))

    def readers(self, tensor: Tensor) -> list[Unit]:
        """The units that read a tensor as integers."""
        units = (self._unit_of.get(id(node)) for node in {id(n): n for n in tensor.outputs}.values())
        return [u for u in units if u is not None and any(t is tensor for t in u.reads)]

    @cached_property
    def _unit_of(self) -> dict[int, Unit]:
        return {id(u.node): u for u in self.units}

    @cached_property
    def read(self) -> dict[str, Variable]:
        """The tensors that some unit reads as integers, by name."""
        return {t.name: t for u in self.units for t in u.reads}

    @cached_property
    def made(self) -> dict[str, Variable]:
        """The tensors that are integers as soon as they are made, by name: whoever reads them reads rounded values."""
        return {t.name: t for u in self.units for t in u.writes if not u.float_output or t.name in self.read}

    @cached_property
    def roots(self) -> dict[str, str]:
        """For each quantized tensor, the one whose scale it shares: where its numbers come from; itself, mostly."""
        found = {name: name for name in (*self.read, *self.made)}
        for unit in self.units:
            if unit.moves:
                found |= {t.name: found[unit.reads[0].name] for t in unit.writes}
        return found


def place(
    model: Model,
    sizes: Sizes,
    specs: Specs,
    *,
    left_out: Reasons = _NONE,
    unfit: Reasons = _NONE,
    times: Times = Times(),  # noqa: B008  # frozen
) -> Placement:
    """Choose. ``sizes`` are observed shapes, ``specs`` inferred types, both by tensor; ``times`` what was measured.

    Nodes named in ``left_out`` stay float, and so do all that would need a tensor named in ``unfit`` quantized.
    """
    scope = Scope(model.graph)
    units: list[Unit] = []
    skips = list(_in_bodies(model))
    for node in model.graph.nodes:
        why = left_out.get(label(node)) or fault(node, sizes, specs, model.opset)
        if not why:
            unit = Unit(node, KERNELS[node.op], _clamp(node, scope))
            needed = unit.reads if unit.float_output else (*unit.reads, *unit.writes)
            why = next((f"'{t.name}' {unfit[t.name]}" for t in needed if t.name in unfit), "")
        if not why:
            units.append(unit)
        elif is_layer(node):
            skips.append(Skip(label(node), why))
        model.release()
    chosen = _around_layers(_cheapest(units, scope, sizes, times))
    kept = set(map(id, chosen))
    skips += [Skip(label(u.node), times.against(u, sizes)) for u in units if is_layer(u.node) and id(u) not in kept]
    return Placement(chosen, tuple(skips), sizes)


def _clamp(node: Node, scope: Scope) -> Node | None:
    """The Relu or Clip that alone reads the node's output, if zero lies inside its range."""
    if KERNELS[node.op].kind is Kind.MOVE or not scope.used_once(node.outputs[0]):
        return None
    reader = node.outputs[0].outputs[0]
    if reader.op not in CLAMPS or not reader.is_standard or reader.inputs[0] is not node.outputs[0]:
        return None
    lo, hi = clamp_limits(reader)
    return reader if lo <= 0 < hi else None


def _in_bodies(model: Model) -> Iterator[Skip]:
    for graph in model.graphs():
        if graph is not model.graph:
            yield from (Skip(label(n), "it is in the body of an If, Loop or Scan") for n in graph.nodes if is_layer(n))


def _around_layers(units: Sequence[Unit]) -> tuple[Unit, ...]:
    """The units that hang together with a layer: what light operators gain alone is not worth the rounding."""
    touching: dict[str, list[Unit]] = {}
    for unit in units:
        for tensor in (*unit.reads, *unit.writes):
            touching.setdefault(tensor.name, []).append(unit)
    stack = [u for u in units if u.kernel.kind is Kind.LAYER]
    kept = set(map(id, stack))
    while stack:
        unit = stack.pop()
        for tensor in (*unit.reads, *unit.writes):
            for other in touching.pop(tensor.name, ()):
                if id(other) not in kept:
                    kept.add(id(other))
                    stack.append(other)
    return tuple(u for u in units if id(u) in kept)


def _cheapest(units: Sequence[Unit], scope: Scope, sizes: Sizes, times: Times) -> list[Unit]:
    """The units that run in integers when the sum of all times is least.

    An arc from one side of the network to the other costs its time when its start runs in integers and its end in
    floats. Each conversion hangs on a gate, so that it is paid once however many readers need it.
    """
    count = len(units)
    integer, floating, gates = count, count + 1, itertools.count(count + 2)
    arcs: list[tuple[int, int, float]] = [(integer, floating, 0.0)]
    number = {id(u.node): i for i, u in enumerate(units)}
    maker = {t.name: i for i, u in enumerate(units) for t in u.writes}
    for i, unit in enumerate(units):
        arcs += [(integer, i, times.in_floats(unit, sizes)), (i, floating, times.in_integers(unit, sizes))]
    for tensor in {t.name: t for u in units for t in (*u.reads, *u.writes)}.values():
        made_by = maker.get(tensor.name, floating)
        can = {number[id(n)] for n in tensor.outputs if id(n) in number}
        can = {i for i in can if any(t is tensor for t in units[i].reads)}
        # Quantized where the maker is float, or gives floats anyway, and any reader takes integers.
        gives_floats = made_by == floating or units[made_by].float_output
        gate = next(gates)
        arcs.append((gate, floating if gives_floats else made_by, times.to_integers(tensor, sizes)))
        arcs += [(i, gate, inf) for i in can]
        # Read back where the maker gives integers and any reader takes floats.
        if not gives_floats:
            gate = next(gates)
            arcs.append((made_by, gate, times.to_floats(tensor, sizes)))
            arcs += [(gate, i, inf) for i in can]
            if len(can) < len({id(n) for n in tensor.outputs}) or scope.is_output(tensor):
                arcs.append((gate, floating, inf))
    side = minimum_cut(next(gates), arcs, integer, floating)
    return [u for i, u in enumerate(units) if side[i]]
