"""What ONNX Runtime executes of a model, with the share of the work that each product is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from onnxopt.core.context import Context
from onnxopt.errors import ExecutionError
from onnxopt.graph.model import Model
from onnxopt.report.execution import Execution, Product, Runs, Step
from onnxopt.runtime.audit import Audit, Executed, audit
from onnxopt.runtime.islands import Rules
from onnxopt.runtime.machine import versions

if TYPE_CHECKING:
    from onnxopt.data.dataset import Dataset

# Keys of the remarks on the nodes of an annotated model.
_REMARK = "onnxopt."


def look(model: Model, dataset: Dataset, rules: Rules = "native") -> Audit:
    """Audit a model, its MACs counted for one sample. Raises ExecutionError when ONNX Runtime cannot load it."""
    try:
        shapes = Context(model, dataset).shapes(model)
    except ExecutionError:  # a model that does not run on this sample is counted as far as its shapes are known
        shapes = {}
    return audit(model, rules=rules, shapes_of=shapes)


def execution(model: Model, found: Audit, rules: Rules) -> Execution:
    """An audit as values for a report."""
    total = sum(n.macs or 0 for n in found.nodes if n.kernel)
    return Execution(
        path=str(model.path or ""),
        rules=rules,
        versions=versions(),
        integer_share=found.integer_share,
        integer=len(found.integer),
        islands=len(found.islands),
        folded=sum(not n.kernel for n in found.nodes),
        uncounted=sum(n.macs is None for n in found.nodes if n.kernel),
        quantizations=found.quantizations,
        dequantizations=found.dequantizations,
        operators=found.operators,
        products=tuple(_product(n, total) for n in found.nodes),
        steps=tuple(Step(n.node, n.op, bool(n.kernel)) for n in found.steps),
    )


def annotated(model: Model, found: Audit) -> Model:
    """A copy whose nodes say in their metadata what executes them: kernel (empty inside another), why, mend."""
    copy = model.clone()
    for node, executed in zip(copy.nodes(), found.every, strict=True):
        origin = onnx.NodeProto()
        if node.origin is not None:
            origin.CopyFrom(node.origin)
        kept = [p for p in origin.metadata_props if not p.key.startswith(_REMARK)]
        del origin.metadata_props[:]
        origin.metadata_props.extend(kept)
        origin.metadata_props.add(key=f"{_REMARK}kernel", value=executed.kernel)
        for key, value in (("why", executed.why), ("mend", executed.mend)):
            if value:
                origin.metadata_props.add(key=f"{_REMARK}{key}", value=value)
        node.origin = origin
    return copy


def _product(node: Executed, total: int) -> Product:
    share = node.macs / total if node.kernel and node.macs is not None and total else None
    runs: Runs = "integer" if node.integer else "float" if node.kernel else "folded"
    return Product(node.node, node.op, runs, node.kernel, node.macs, share, node.why, node.mend)
