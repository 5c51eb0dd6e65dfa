"""Weights as integers of 8 or 4 bits, and everything that is computed as float: for models that wait for their weights.

With real data each layer is rounded for what reaches it, so that it still makes what it made in the original; without,
or where that cannot be solved for, for the weights alone. How the runtime reads such weights is looked up afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Pass, PassResult, Preflight, Skip, label, option
from onnxopt.core.patterns import absent, excluded
from onnxopt.core.reasons import tried
from onnxopt.errors import ModelError
from onnxopt.graph.model import Model
from onnxopt.numerics.blocks import Format
from onnxopt.quantization.judge import cannot_run
from onnxopt.runtime.audit import audit
from onnxopt.weights import weight_only_write
from onnxopt.weights.weight_only import Site
from onnxopt.weights.weight_only_coding import Coding

_BLOCKS = (0, 32, 64, 128)
_BITS = (4, 8)
_EXECUTED = ("MatMulNBits", "GatherBlockQuantized", "DequantizeLinear")


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
        coding = Coding(Format(self.bits, self.symmetric), self.block, self.form, context.target)
        skips = list(absent(self.exclude, map(label, plain.nodes())))
        try:
            if oldest := coding.oldest_opset(plain, self._left_out(plain)):
                plain.upgrade(oldest)
        except ModelError as error:
            skips.append(Skip("opset", str(error)))
        chosen, left = coding.choose(plain, self._left_out(plain))
        nearest = self.rounding == "nearest"
        layers = weight_only_write.write(plain, chosen, coding, context, self.samples, left, to_nearest=nearest)
        sites = [c.site for c in chosen if id(c.site.node) in layers]
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
            "weight_bytes": [model.constant_bytes(), plain.constant_bytes()],
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

    def _left_out(self, model: Model) -> dict[str, str]:
        convolutions = [] if self.conv else [label(n) for n in model.nodes() if n.op == "Conv"]
        return dict.fromkeys(convolutions, "conv=false") | excluded(self.exclude, map(label, model.nodes()))


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
