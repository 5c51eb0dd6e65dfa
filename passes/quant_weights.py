"""Weights as integers of 8 or 4 bits, and everything that is computed as float: for models that wait for their weights.

With real data each layer is rounded for what reaches it, so that it still makes what it made in the original; without,
or where that cannot be solved for, for the weights alone. How the runtime reads such weights is looked up afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Pass, PassResult, Skip, label, option
from onnxopt.core.patterns import absent, excluded
from onnxopt.errors import ModelError
from onnxopt.graph.layer import layout
from onnxopt.graph.model import Model
from onnxopt.numerics.blocks import Coded, Format
from onnxopt.pruning.repair import Place, observed
from onnxopt.quantization import weight_only
from onnxopt.quantization.judge import cannot_run
from onnxopt.quantization.weight_only import Site
from onnxopt.quantization.weight_only_fit import Fitted, fit
from onnxopt.quantization.weight_only_forms import Form, Writer, oldest_opset, stored_bytes, takes
from onnxopt.runtime.audit import audit
from onnxopt.runtime.target import Target

_BLOCKS = (0, 32, 64, 128)
_BITS = (4, 8)
_NARROW = 32
# Rows of tables where ONNX's own operators look them up.
_ROWS = Format(8, symmetric=True)


@dataclass(frozen=True, kw_only=True)
class QuantWeights(Pass):
    """8- or 4-bit weights for MatMul, Gemm, Conv and embeddings; what they are multiplied with stays float."""

    name: ClassVar[str] = "quant-weights"
    after: ClassVar[tuple[str, ...]] = ("prune", "svd", "sparsify", "quant", "quant-dynamic")
    prepare: ClassVar[tuple[str, ...]] = ("inline-functions", "freeze-defaults", "fold-constants", "fold-bn", "clean")

    bits: int = option(4, "bits of a weight, 8 or 4")
    block: int = option(32, "how many inputs of an output share a scale: 32, 64, 128, or 0 for all")
    symmetric: bool = option(False, "no zero points: a little smaller, a little less exact")
    form: Literal["auto", "qdq", "nbits"] = option(
        "auto", "DequantizeLinear (standard), MatMulNBits (ONNX Runtime's own), or what the runtime likes best"
    )
    rounding: Literal["auto", "nearest"] = option("auto", "nearest: each weight by itself, data or not")
    conv: bool = option(True, "convolutions too, whose weights the runtime decodes at every run")
    exclude: str = option("", "nodes to leave float: names or patterns with *, joined by +")
    samples: int = option(256, "how many samples to round for, at most")

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise ValueError(f"bits is {self.bits}; it is 8 or 4")
        if self.block not in _BLOCKS:
            raise ValueError(f"block is {self.block}; it is 32, 64, 128, or 0 for whole rows")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")

    def run(self, model: Model, context: Context) -> PassResult:
        plain = model.clone()
        skips = list(absent(self.exclude, map(label, plain.nodes())))
        try:
            if oldest := self._oldest_opset(plain, context.target):
                plain.upgrade(oldest)
        except ModelError as error:
            skips.append(Skip("opset", str(error)))
        sites, left = weight_only.find(plain, self._left_out(plain))
        forms = {id(s.node): self._form(s, context.target) for s in sites}
        old = [s for s in sites if oldest_opset(s, forms[id(s.node)], self._format, self.block) > plain.opset]
        left |= {label(s.node): "its form needs a newer opset than the model could be given" for s in old}
        sites = [s for s in sites if s not in old]
        if not sites:
            return PassResult(0, (*skips, *(Skip(name, why) for name, why in left.items())))
        before = model.constant_bytes()
        layers, codes = self._coded(plain, sites, forms, context)
        left |= {label(s.node): "its weights are not all finite" for s in sites if id(s.node) not in codes}
        sites = [s for s in sites if id(s.node) in codes]
        skips += [Skip(name, why) for name, why in left.items()]
        if not sites:
            return PassResult(0, tuple(skips))
        self._write(plain, sites, forms, codes, context)
        if why := cannot_run(plain, context):
            return PassResult(0, (*skips, Skip("model", why)))
        operators = audit(plain).operators
        figures: dict[str, Figure] = {
            "layers": layers,
            "weight_bytes": [before, plain.constant_bytes()],
            "executed": {op: operators[op] for op in _EXECUTED if operators.get(op)},
            "notes": _notes(operators, sites),
        }
        if plain.opset != model.opset:
            figures["opset"] = [model.opset, plain.opset]
        model.adopt(plain)
        return PassResult(len(sites), tuple(skips), figures)

    @property
    def _format(self) -> Format:
        return Format(self.bits, self.symmetric)

    def _left_out(self, model: Model) -> dict[str, str]:
        convolutions = [] if self.conv else [label(n) for n in model.nodes() if n.op == "Conv"]
        return dict.fromkeys(convolutions, "conv=false") | excluded(self.exclude, map(label, model.nodes()))

    def _oldest_opset(self, model: Model, target: Target) -> int:
        sites, _ = weight_only.find(model, self._left_out(model))
        return max((oldest_opset(s, self._form(s, target), self._format, self.block) for s in sites), default=0)

    def _form(self, site: Site, target: Target) -> Form:
        """The runtime makes MatMulNBits of a DequantizeLinear itself, of accuracy level 4, and repeats the scale of a
        row; so whole rows are smaller in that form, if the target takes that level. Narrow ones it does not join."""
        if site.kind == "conv" or self.form == "qdq" or not takes(site, self._format, self.block):
            return "qdq"
        whole_rows = site.kind == "product" and not self.block and site.inputs >= _NARROW
        return "qdq" if self.form == "auto" and whole_rows and _level(target) == 4 else "nbits"

    def _coded(
        self, model: Model, sites: Sequence[Site], forms: dict[int, Form], context: Context
    ) -> tuple[list[Any], dict[int, Coded]]:
        """Figures of each layer, and the weights of each site by the ``id`` of its node."""
        layers, codes = [], {}
        solved = [] if self.rounding == "nearest" or context.dataset.synthetic else _solvable(model, sites)
        ids = {id(s.node) for s in solved}
        for site, coded in self._without_data([s for s in sites if id(s.node) not in ids], forms, context, model):
            codes[id(site.node)] = coded
            told: dict[str, Any] = {"weight_error": weight_only.relative_error(site, coded)}
            layers.append(self._figures(site, forms, coded) | told)
        for site, found in self._with_data(model, solved, context):
            codes[id(site.node)] = found.coded
            told = {"error": found.error, "nearest_error": found.nearest, "rounding": found.rounding}
            layers.append(self._figures(site, forms, found.coded) | told)
        return layers, codes

    def _without_data(
        self, sites: Sequence[Site], forms: dict[int, Form], context: Context, model: Model
    ) -> Iterator[tuple[Site, Coded]]:
        """Weights shared by several sites are coded once for all that want them alike."""
        made: dict[Any, Coded | None] = {}
        rounding: weight_only.Rounding = "nearest" if self.rounding == "nearest" else "half-quadratic"
        for site in context.track(sites, self.name):
            form, block = self._table_format(site, forms)
            key = id(site.weight), site.by_row, site.kernel, site.factor, form, block
            if key not in made:
                made[key] = weight_only.encode(site, form, block, rounding)
                model.release()
            coded = made[key]
            if coded is not None:
                yield site, coded

    def _table_format(self, site: Site, forms: dict[int, Form]) -> tuple[Format, int]:
        by_rows = site.kind == "table" and forms[id(site.node)] == "qdq"
        return (_ROWS, 0) if by_rows else (self._format, self.block)

    def _with_data(self, model: Model, sites: Sequence[Site], context: Context) -> Iterator[tuple[Site, Fitted]]:
        """In the order of the graph; each layer makes good for those before it."""
        places = [Place(s.node, np.ones(layout(s.node).outputs, np.bool_), True) for s in sites]
        by_layer = {id(s.node): s for s in sites}
        if not places:
            return
        for place, rows in observed(model, model.clone(), places, context, self.samples, self.name):
            site = by_layer[id(place.layer)]
            weight, bias = unrolled.read(place.layer)
            has_bias = unrolled.has_bias(model, place.layer)
            found = fit(weight, bias, has_bias, rows, site.blocks(self.block), self._format)
            unrolled.write(model, place.layer, found.weight(), found.bias)
            yield site, found

    def _write(
        self, model: Model, sites: Sequence[Site], forms: dict[int, Form], codes: dict[int, Coded], context: Context
    ) -> None:
        writer = Writer(model, self._format, _level(context.target))
        packed = {id(codes[id(s.node)].steps) for s in sites if s.kind == "product" and forms[id(s.node)] == "nbits"}
        for site in sites:
            coded = codes[id(site.node)]
            writer.write(site, coded, forms[id(site.node)], tied=id(coded.steps) in packed)
        model.tidy()

    def _figures(self, site: Site, forms: dict[int, Form], coded: Coded) -> dict[str, Any]:
        form, _ = self._table_format(site, forms)
        return {
            "layer": label(site.node),
            "form": forms[id(site.node)],
            "bits": form.bits,
            "bytes": [int(coded.steps.size) * 4, stored_bytes(form, coded)],
        }


_EXECUTED = ("MatMulNBits", "GatherBlockQuantized", "DequantizeLinear")


def _level(target: Target) -> int:
    """4 where there are kernels that multiply integers of 8 bits with such of 4: on ARM they need its dot product."""
    without = target.architecture == "arm64" and target.instructions and "asimddp" not in target.instructions
    return 0 if without else 4


def _solvable(model: Model, sites: Sequence[Site]) -> list[Site]:
    """The sites of the main graph that can be solved for: all weights their own."""
    outer = {id(n) for n in model.graph.nodes}
    alone = {key for key, group in weight_only.readers(list(sites)).items() if len(group) == 1}
    return [
        s
        for s in sites
        if s.kind != "table" and id(s.node) in outer and id(s.weight) in alone and not unrolled.fault(s.node)
    ]


def _notes(operators: Any, sites: Sequence[Site]) -> list[str]:
    """What the runtime makes of it, in words."""
    notes = []
    if count := operators.get("MatMulNBits", 0):
        notes.append(f"{count} of the products run with packed weights, in memory as in the file")
    decoded = operators.get("DequantizeLinear", 0)
    if decoded:
        kinds = Counter(s.kind for s in sites)
        which = "convolutions" if kinds["conv"] >= decoded else "layers"
        notes.append(f"the weights of {decoded} {which} are decoded at every run: smaller in the file, but slower")
    return notes
