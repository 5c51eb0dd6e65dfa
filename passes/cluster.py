"""Few different weights: each layer's weights share some levels, and the file holds which weight takes which.

    levels=16   two weights in a byte, an eighth of float32; 256 one, a quarter
    ternary     -1, 0 or 1 times a scale: five weights in a byte
    binary      -1 or 1 times a scale: eight

With data the weights take the levels that change what the layer makes least, one after the other, the later ones making
good for the earlier; levels, scales and bias are solved by least squares. The file shrinks; a runtime makes floats of
it when it loads, and needs the memory and time that it needed before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, NamedTuple

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Pass, PassResult, Preflight, Skip, label, option
from onnxopt.core.patterns import absent, excluded
from onnxopt.core.reasons import tried
from onnxopt.errors import ModelError
from onnxopt.graph import codes, layer
from onnxopt.graph.codes import Coded
from onnxopt.graph.compressed import compressed_bytes
from onnxopt.graph.decoding import already
from onnxopt.graph.ir import Constant, Node, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.codebook import Form
from onnxopt.pruning import channels
from onnxopt.weights import sharing
from onnxopt.weights.sharing import Kind

_FEWEST, _LEVELS, _MOST = 2, 16, 256
_ENDS = "first or last layer, and keep-ends leaves those alone"
_INTEGERS = "its weights are integers already"
_EXPANDED = "a runtime makes floats of the levels when it loads: a smaller file, the same memory and time"
_NO_DATA = "cluster: made-up data does not tell what rounding does; each weight took the level nearest to it"


class _Chosen(NamedTuple):
    """A constant and what to store instead, who reads it, what it was, and errors of the outputs if they were seen."""

    constant: Constant
    coded: Coded
    node: Node
    before: Array
    errors: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Cluster(Pass):
    """Few levels that the weights of a layer share, stored as small numbers: a smaller file, not a quicker model."""

    name: ClassVar[str] = "cluster"
    after: ClassVar[tuple[str, ...]] = (
        "inline-functions", "freeze-defaults", "fold-constants", "clean", "fold-bn", "conv-shortcut", "prune", "svd",
        "sparsify", "quant", "quant-dynamic", "quant-weights",
    )  # fmt: skip
    prepare: ClassVar[tuple[str, ...]] = ("inline-functions", "fold-bn")

    levels: int = option(_LEVELS, "how many different weights a layer has, 2 to 256; with a scale, each channel")
    ternary: bool = option(False, "instead of levels: -1, 0 and 1, times a scale")
    binary: bool = option(False, "instead of levels: -1 and 1, times a scale")
    per_channel: bool = option(True, "a scale for each output channel; false: one for the layer")
    group: int = option(0, "levels of their own for so many output channels each; 0: the layer shares them")
    data: bool = option(True, "choose by what layers make of the calibration data; false: by their weights")
    keep_ends: bool = option(False, "leave the first and last layers alone")
    exclude: str = option("", "layers to leave alone: names or patterns with *, joined by +")
    samples: int = option(512, "how many samples to choose with, at most")

    def __post_init__(self) -> None:
        if not _FEWEST <= self.levels <= _MOST:
            raise ValueError(f"levels is {self.levels}; a layer can have {_FEWEST} to {_MOST}")
        if self.ternary + self.binary + (self.levels != _LEVELS) > 1:
            raise ValueError("levels, ternary and binary each say how many levels there are; give one of them")
        if self.group < 0:
            raise ValueError(f"group must be at least 0, not {self.group}")
        if self.group and (self.ternary or self.binary):
            raise ValueError("group is for levels; ternary and binary differ between channels by the scale alone")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")

    @property
    def _kind(self) -> Kind:
        form: Form = "ternary" if self.ternary else "binary" if self.binary else self.levels
        return Kind(form, self.per_channel, self.group)

    def run(self, model: Model, context: Context) -> PassResult:
        try:
            model.upgrade(codes.OLDEST_OPSET)
        except ModelError as error:
            return PassResult(0, (Skip("model", str(error)),))
        found, skips = {}, list(absent(self.exclude, map(label, model.nodes())))
        skips += _stored(model)
        for constant, nodes, why in self._candidates(model):
            if why:
                skips.append(Skip(label(nodes[0]), why))
            else:
                found[constant] = nodes
        if not found:
            return PassResult(0, tuple(skips))
        saved, table = sum(sharing.saved(*f, self._kind) for f in found.items()), codes.table_bytes(self._kind.levels)
        if saved <= table:
            why = (
                f"it would save nothing: all layers together {saved} bytes, and the table that they share takes {table}"
            )
            return PassResult(0, (*skips, *(Skip(label(nodes[0]), why) for nodes in found.values())))
        file, packed = model.constant_bytes(), compressed_bytes(model)
        chosen = list(self._chosen(model, found, context))
        coded = codes.few_tables({c.constant: c.coded for c in chosen}, self._kind.levels)
        told = [sharing.told(label(c.node), c.before, coded[c.constant], c.constant.name, c.errors) for c in chosen]
        codes.store(model, coded)
        size = compressed_bytes(model)
        figures: dict[str, Figure] = {
            "layers": [asdict(t) for t in told],
            "weight_bytes": [file, model.constant_bytes()],
            "zstd_bytes": [packed, size],
            "entropy_bytes": [sum(t.bytes[0] for t in told), sum(t.bytes[2] for t in told)],
            "notes": [_EXPANDED, *([_NO_DATA] if self.data and context.dataset.synthetic else [])],
        }
        return PassResult(len(coded), tuple(skips), figures)

    def preflight(self, model: Model, context: Context) -> Preflight:
        """Gives the weights of a copy the levels nearest to them: as many for the same layers."""
        return tried(replace(self, data=False), model, context, "no weight would share levels")

    def _chosen(self, model: Model, found: dict[Constant, list[Node]], context: Context) -> Iterator[_Chosen]:
        """What to store instead of each weight, some of which are replaced on the way."""
        use_data = self.data and not context.dataset.synthetic
        solved = [n[0] for c, n in found.items() if use_data and sharing.is_solvable(model, c, n)]
        order = {id(node): i for i, node in enumerate(model.graph.nodes)}
        solved.sort(key=lambda node: order[id(node)])
        before = {id(node): (node.inputs[1], node.attrs.get("alpha", 1.0)) for node in solved}
        for constant, nodes in found.items():
            if id(nodes[0]) not in before or len(nodes) > 1:
                yield _Chosen(constant, sharing.by_weights(constant, nodes, self._kind), nodes[0], constant.values)
        if solved:
            original = model.clone()
            done = sharing.by_outputs(model, original, solved, self._kind, context, self.samples)
            for node, codes_, plain, error in done:
                weight, alpha = before[id(node)]  # what is solved for has alpha in it
                yield _Chosen(node.inputs[1], codes_, node, weight.values * alpha, (plain, error))

    def _candidates(self, model: Model) -> Iterator[tuple[Constant, list[Node], str]]:
        """Every weight, its readers, and why it stays as it is, if it does."""
        left_out = excluded(self.exclude, map(label, model.nodes()))
        ends = channels.ends(model.graph) if self.keep_ends else set()
        for constant, nodes in sharing.candidates(model).items():
            why = next((left_out[label(n)] for n in nodes if label(n) in left_out), "")
            why = why or (_ENDS if any(id(n) in ends for n in nodes) else "")
            yield constant, nodes, why or sharing.fault(model, constant, nodes, self._kind)


def _stored(model: Model) -> Iterator[Skip]:
    """Weights that take few bits as it is."""
    for node in model.nodes():
        if node.op in layer.LAYERS and not is_constant(node.inputs[1]) and layer.stored_weight(node) is not None:
            yield Skip(label(node), _INTEGERS)
        for tensor in (node.inputs[i] for i in sharing.slots(node) if i < len(node.inputs)):
            if how := already(tensor):
                yield Skip(label(node), f"its weights are {how}")
