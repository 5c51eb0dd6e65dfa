"""Weights as integers of 8 or 4 bits, and everything that is computed as float: for models that wait for their weights.

With real data each layer is rounded for what reaches it, so that it still makes what it made in the original; without,
or where that cannot be solved for, for the weights alone. How the runtime reads such weights is looked up afterwards.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Pass, PassResult, Preflight, Skip, label, option
from onnxopt.core.patterns import absent, excluded
from onnxopt.core.reasons import tried
from onnxopt.errors import ModelError
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
        sites, forms, left = self._sites(plain, context.target)
        if not sites:
            return PassResult(0, (*skips, *(Skip(name, why) for name, why in left.items())))
        before = model.constant_bytes()
        layers = self._rounded(plain, sites, forms, context, left)
        sites = [s for s in sites if id(s.node) in layers]
        skips += [Skip(name, why) for name, why in left.items()]
        if not sites:
            return PassResult(0, tuple(skips))
        plain.tidy()
        plain.release()
        if why := cannot_run(plain, context):
            return PassResult(0, (*skips, Skip("model", why)))
        operators = audit(plain).operators
        figures: dict[str, Figure] = {
            "layers": [layers[id(s.node)] for s in sites],
            "weight_bytes": [before, plain.constant_bytes()],
            "executed": {op: operators[op] for op in _EXECUTED if operators.get(op)},
            "notes": _notes(operators, sites),
        }
        if plain.opset != model.opset:
            figures["opset"] = [model.opset, plain.opset]
        model.adopt(plain)
        return PassResult(len(sites), tuple(skips), figures)

    def preflight(self, model: Model, context: Context) -> Preflight:
        """Rounds a copy to nearest, of which all but the integers is as it will be."""
        return tried(replace(self, rounding="nearest"), model, context, "no weights would be rounded")

    @property
    def _format(self) -> Format:
        return Format(self.bits, self.symmetric)

    def _sites(self, model: Model, target: Target) -> tuple[list[Site], dict[int, Form], dict[str, str]]:
        """Whose weights are coded, in which form by the ``id`` of the node, and what is left alone by label. What is
        left alone reads floats, which may take others with it."""
        left_out = self._left_out(model)
        while True:
            sites, left = weight_only.find(model, left_out)
            forms = {id(s.node): self._form(s, target) for s in sites}
            across = {id(s.node) for s in weight_only.across_graphs(sites)}
            if self.form == "auto":
                forms |= dict.fromkeys(across, "nbits")
            faults = {label(s.node): self._fault(s, forms[id(s.node)], model.opset, across) for s in sites}
            if not any(faults.values()):
                return sites, forms, left
            left_out |= {name: why for name, why in faults.items() if why}

    def _fault(self, site: Site, form: Form, opset: int, across: set[int]) -> str:
        """Why a form is not to be had, or not worth it; empty if it is."""
        if oldest_opset(site, form, self._format, self.block) > opset:
            return "its form needs a newer opset than the model could be given"
        if form == "qdq" and id(site.node) in across:
            return _ACROSS
        now, then = prod(site.weight.shape) * 4, stored_bytes(site, form, *self._table_format(site, form))
        return f"it would save nothing: {now} bytes now, {then} then" if then >= now else ""

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

    def _rounded(
        self, model: Model, sites: Sequence[Site], forms: dict[int, Form], context: Context, left: dict[str, str]
    ) -> dict[int, dict[str, Any]]:
        """Write the weights of each site, as soon as those that are solved for are known; figures by the ``id`` of its
        node. Of the others one weight at a time is held in memory; ``left`` gains those that cannot be coded."""
        solved = [] if self.rounding == "nearest" or context.dataset.synthetic else weight_only.solvable(model, sites)
        fitted = dict(self._with_data(model, solved, context))
        groups = self._alike([s for s in sites if id(s.node) not in fitted], forms)
        layers: dict[int, dict[str, Any]] = {}
        for site in solved:
            found = fitted[id(site.node)]
            told: dict[str, Any] = {"error": found.error, "nearest_error": found.nearest, "rounding": found.rounding}
            layers |= self._write(model, [site], forms, found.coded, context.target, told)
        for group in context.track(groups, self.name):
            first = group[0]
            if why := weight_only.unfit(first):
                left |= {label(s.node): why for s in group}
                continue
            rounding = "nearest" if self.rounding == "nearest" else weight_only.without_data(group)
            form = self._table_format(first, forms[id(first.node)])
            coded, error = weight_only.encode(first, *form, rounding)
            model.release()
            told = {"weight_error": error, "rounding": rounding}
            layers |= self._write(model, group, forms, coded, context.target, told)
        return layers

    def _alike(self, sites: Sequence[Site], forms: dict[int, Form]) -> list[list[Site]]:
        """Those together that want the same weights in the same coding."""
        groups: defaultdict[Any, list[Site]] = defaultdict(list)
        for site in sites:
            key = (
                id(site.weight),
                site.by_row,
                site.kernel,
                site.factor,
                *self._table_format(site, forms[id(site.node)]),
            )
            groups[key].append(site)
        return list(groups.values())

    def _table_format(self, site: Site, form: Form) -> tuple[Format, int]:
        by_rows = site.kind == "table" and form == "qdq"
        return (_ROWS, 0) if by_rows else (self._format, self.block)

    def _with_data(self, model: Model, sites: Sequence[Site], context: Context) -> Iterator[tuple[int, Fitted]]:
        """By the ``id`` of the node, in the order of the graph; each layer makes good for those before it."""
        places = [Place.whole(s.node) for s in sites]
        by_layer = {id(s.node): s for s in sites}
        for place, rows in observed(model, model.clone(), places, context, self.samples, self.name):
            site = by_layer[id(place.layer)]
            weight, bias = unrolled.read(place.layer)
            has_bias = unrolled.has_bias(model, place.layer)
            found = fit(weight, bias, has_bias, rows, site.blocks(self.block), self._format)
            unrolled.write(model, place.layer, found.weight(), found.bias)
            yield id(site.node), found

    def _write(
        self,
        model: Model,
        sites: Sequence[Site],
        forms: dict[int, Form],
        coded: Coded,
        target: Target,
        told: dict[str, Any],
    ) -> dict[int, dict[str, Any]]:
        """Let these sites read one coding; their figures with what is ``told`` of it."""
        figures = {id(s.node): self._figures(s, forms[id(s.node)]) | told for s in sites}
        writer = Writer(model, self._format, _level(target), coded)
        tied = any(s.kind == "product" and forms[id(s.node)] == "nbits" for s in sites)
        for site in sites:
            writer.write(site, forms[id(site.node)], tied)
        return figures

    def _figures(self, site: Site, form: Form) -> dict[str, Any]:
        kind, block = self._table_format(site, form)
        return {
            "layer": label(site.node),
            "form": form,
            "bits": kind.bits,
            "bytes": [prod(site.weight.shape) * 4, stored_bytes(site, form, kind, block)],
        }


_ACROSS = "bodies share its weights, and ONNX Runtime cannot load those behind DequantizeLinear; form=nbits can be"
_EXECUTED = ("MatMulNBits", "GatherBlockQuantized", "DequantizeLinear")


def _level(target: Target) -> int:
    """4 where there are kernels that multiply integers of 8 bits with such of 4: on ARM they need its dot product."""
    without = target.architecture == "arm64" and target.instructions and "asimddp" not in target.instructions
    return 0 if without else 4


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
