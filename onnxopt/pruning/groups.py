"""Who is tied to whom, in words for people: layers whose channels live and die together, and what can never go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxopt.core.pass_ import label
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.ir import Constant, Node, is_constant
from onnxopt.graph.labels import Labels
from onnxopt.graph.model import Model
from onnxopt.pruning.channels import Producer, is_layer, stored, weight_fault, widths

BODY = "lies in the body of an If, Loop or Scan"
UNJUDGED = "its weights are not judged"


@dataclass(frozen=True)
class Group:
    """Layers that make the same channels, and the nodes that sum over them.

    ``classes`` is in how many parts the ``channels`` can go, each whole or not at all; channels are counted in the
    layer that has the fewest of them. 0 classes: they all stay, and ``why``.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int
    classes: int
    why: str = ""


@dataclass(frozen=True)
class Frozen:
    """What one reason costs: the ``layers`` of which channels stay for it, and the weights behind these channels."""

    why: str
    layers: tuple[str, ...]
    parameters: int


class Ties:
    """The groups of a model as it is when this is made; it can be cut then.

    ``groups`` are all channels that its layers make: first those that can go, in the order of the layers.
    """

    def __init__(self, coupling: Coupling, makers: Sequence[Producer]) -> None:
        self._makers = makers
        self._width = widths(makers, coupling)
        movable = list(_movable(coupling, makers, self._width))
        self._classes = [classes for _, classes in movable]
        self.groups = [*(group for group, _ in movable), *_staying(coupling, makers)]

    def kept(self, stays: Mapping[int, npt.NDArray[np.bool_]]) -> list[int]:
        """How many channels are left of each group; ``stays``: which outputs of a layer, by its ``id``."""
        left = np.zeros(len(self._width), bool)
        for m in self._makers:
            left[m.classes[stays[id(m.layer)]]] = True
        width = np.where(left, self._width, 0)
        whole = self.groups[len(self._classes) :]
        return [*(int(width[classes].sum()) for classes in self._classes), *(group.channels for group in whole)]


def groups(model: Model, coupling: Coupling, makers: Sequence[Producer]) -> list[Group]:
    """Who is tied to whom, as ``Ties`` has it."""
    return Ties(coupling, makers).groups


def frozen(model: Model, coupling: Coupling, makers: Sequence[Producer]) -> list[Frozen]:
    """Why channels stay, the reason that holds the most weights first."""
    names: dict[str, list[str]] = {}
    # By the weights' identity: layers that share them count them once.
    held: dict[str, dict[int, int]] = {}
    others = ((node, 1.0, UNJUDGED) for node in unjudged(coupling))
    for layer, share, why in (*_held(coupling, makers), *_unjudged(model, makers), *others):
        names.setdefault(why, []).append(label(layer))
        weights = stored(layer) if is_layer(layer) else _matrices(layer)
        held.setdefault(why, {}).update({id(w): round(share * np.prod(w.shape)) for w in weights})
    found = [Frozen(why, tuple(layers), sum(held[why].values())) for why, layers in names.items()]
    return sorted(found, key=lambda f: -f.parameters)


def unjudged(coupling: Coupling) -> list[Node]:
    """Nodes that are no layers, but sum over what reaches them with weights of their own: nobody judges these."""
    nodes = {id(p.node): p.node for p in coupling.contractions}
    return [n for n in nodes.values() if not is_layer(n) and _matrices(n)]


def _matrices(node: Node) -> list[Constant]:
    """Constants that a node reads, of two axes or more."""
    return [t for t in node.inputs if is_constant(t) and len(t.shape) > 1]


def _movable(coupling: Coupling, makers: Sequence[Producer], width: Labels) -> Iterator[tuple[Group, Labels]]:
    """Groups with their classes: the blocks that the same layers make and the same nodes read."""
    blocks = coupling.blocks()
    block_of = np.full(coupling.count + 1, len(blocks), np.intp)
    for i, block in enumerate(blocks):
        block_of[block] = i
    made = _by_block(block_of, len(blocks), ((m.layer, m.classes) for m in makers))
    read = _by_block(block_of, len(blocks), ((p.node, coupling.input(*p)) for p in coupling.contractions))
    together: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Labels]] = {}
    for block, names, readers in zip(blocks, made, read, strict=True):
        if names:
            together.setdefault((names, readers), []).append(block)
    place = {label(m.layer): i for i, m in reversed(list(enumerate(makers)))}
    for (names, readers), parts in sorted(together.items(), key=lambda item: place[item[0][0][0]]):
        classes = np.concatenate(parts)
        yield Group(names, readers, int(width[classes].sum()), len(classes)), classes


def _by_block(block_of: Labels, count: int, places: Iterable[tuple[Node, Labels]]) -> list[tuple[str, ...]]:
    """By block: the names of the nodes that have classes of it, in the order of the graph."""
    found: list[dict[str, None]] = [{} for _ in range(count + 1)]
    for node, classes in places:
        for i in np.unique(block_of[classes]).tolist():
            found[i][label(node)] = None
    return [tuple(names) for names in found[:count]]


def _staying(coupling: Coupling, makers: Sequence[Producer]) -> Iterator[Group]:
    """Layers with as many channels that stay for the same reason."""
    together: dict[tuple[str, int], list[str]] = {}
    for m in makers:
        if stay := int((m.classes == 0).sum()):
            together.setdefault((coupling.why_frozen(m.layer, m.axis), stay), []).append(label(m.layer))
    for (why, channels), names in together.items():
        yield Group(tuple(names), (), channels, 0, why)


def _held(coupling: Coupling, makers: Sequence[Producer]) -> Iterator[tuple[Node, float, str]]:
    """(layer, share of its channels that stay, why)"""
    for m in makers:
        if (m.classes == 0).any():
            yield m.layer, float(np.mean(m.classes == 0)), coupling.why_frozen(m.layer, m.axis)


def _unjudged(model: Model, makers: Sequence[Producer]) -> Iterator[tuple[Node, float, str]]:
    """Layers that are not among the makers, which stay whole."""
    judged = {id(m.layer) for m in makers}
    for node in model.nodes():
        if is_layer(node) and id(node) not in judged:
            fault = weight_fault(node)
            yield node, 1.0, f"it {fault}" if fault else BODY
