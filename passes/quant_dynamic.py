"""Dynamic quantization: 8-bit weights, and activations that get their scale anew at every run. It needs no data.

For models that spend their time in MatMul, Gemm and LSTM: there it is closer to float than ranges from data, which
must hold for all inputs at once. What the runtime executes in the end is looked up, and a layer that it leaves float
all the same is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Pass, PassResult, Preflight, Skip, label, option
from onnxopt.core.patterns import absent, excluded
from onnxopt.core.reasons import tried
from onnxopt.errors import ModelError
from onnxopt.graph.model import Model
from onnxopt.quantization import dynamic_eligible as eligible
from onnxopt.quantization.dynamic import quantize_layers
from onnxopt.quantization.judge import cannot_run
from onnxopt.quantization.kernels import QUANTIZED
from onnxopt.runtime.audit import audit
from onnxopt.runtime.probe import saturates


@dataclass(frozen=True, kw_only=True)
class QuantDynamic(Pass):
    """8-bit weights, and activations quantized as they come: for MatMul, Gemm, LSTM and embeddings."""

    name: ClassVar[str] = "quant-dynamic"
    after: ClassVar[tuple[str, ...]] = ("fold-bn", "fold-constants", "clean", "prune", "svd", "sparsify", "quant")
    prepare: ClassVar[tuple[str, ...]] = ("inline-functions", "freeze-defaults", "fold-constants", "fold-bn", "clean")

    embeddings: bool = option(True, "keep tables that rows are looked up in as integers, with a scale per row")
    exclude: str = option("", "nodes to leave float: names or patterns with *, joined by +")

    def run(self, model: Model, context: Context) -> PassResult:
        if found := next((n for n in model.nodes() if n.op in QUANTIZED), None):
            return PassResult(0, (Skip(label(found), f"the model is quantized already: it holds {found.op}"),))
        plain = model.clone()
        notes: tuple[Skip, ...] = ()
        try:
            plain.upgrade(eligible.OLDEST_OPSET)
        except ModelError as error:
            notes = (Skip("opset", str(error)),)
        labels = [label(n) for n in plain.nodes()]
        notes += absent(self.exclude, labels)
        tables = [] if self.embeddings else [label(n) for n in plain.nodes() if n.op == "Gather"]
        left_out = dict.fromkeys(tables, "embeddings=false") | excluded(self.exclude, labels)
        chosen, left = eligible.choose(plain, context.shapes(plain), left_out)
        while chosen:
            candidate = plain.clone()
            reduced = quantize_layers(candidate, chosen, guard=saturates(context.target))
            if why := cannot_run(candidate, context):
                return PassResult(0, (*notes, Skip("model", why)))
            executed = audit(candidate)
            refused = {n.node: f"ONNX Runtime leaves it float: {n.why}" for n in executed.islands if n.node in chosen}
            if not refused:
                break
            left |= refused
            chosen = [name for name in chosen if name not in refused]
        skips = (*notes, *(Skip(name, why) for name, why in left.items()))
        if not chosen:
            return PassResult(0, skips)
        lookups = sum(n.op == "Gather" and label(n) in chosen for n in plain.nodes())
        figures: dict[str, Figure] = {
            "layers": len(chosen) - lookups,
            "embeddings": lookups,
            "integer_kernels": len(executed.integer),
            "float_islands": len(executed.islands),
            "weight_bytes": [model.constant_bytes(), candidate.constant_bytes()],
        }
        if reduced:
            figures["reduced_channels"] = reduced
        if plain.opset != model.opset:
            figures["opset"] = [model.opset, plain.opset]
        model.adopt(candidate)
        return PassResult(len(chosen), skips, figures)

    def preflight(self, model: Model, context: Context) -> Preflight:
        """Does it to a copy: there is nothing that takes long."""
        return tried(self, model, context, "no layer would run in integers")
