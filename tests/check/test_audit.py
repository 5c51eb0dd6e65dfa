"""The audit agrees with a count of what ONNX Runtime saves, whatever is quantized; and what it makes of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxopt.check.audit import annotated, execution, look
from onnxopt.core.manager import PassManager
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model
from onnxopt.passes import Quant
from onnxopt.runtime.audit import INTEGER_KERNELS, audit, is_quantized

FLOAT_KERNELS = {
    *("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"),
    *("LSTM", "GRU", "RNN", "Einsum", "Attention"),
}


def executed(model: Model, folder: Path, arm: bool) -> Counter[str]:
    """Operators of the graph that ONNX Runtime saves, counted without any help of the audit."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "saved.onnx")
    if arm:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    ort.InferenceSession(model.to_proto().SerializeToString(), options, ["CPUExecutionProvider"])
    found: Counter[str] = Counter()
    graphs = [onnx.load(folder / "saved.onnx").graph]
    while graphs:
        graph = graphs.pop()
        found.update(node.op_type for node in graph.node)
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return found


def make_signed(model: Model) -> None:
    """Turn every unsigned zero point into a signed one, as quantizers with signed activations write them."""
    for constant in model.constants():
        if constant.dtype == np.uint8 and not np.asarray(constant.values).shape:
            constant.values = np.asarray(np.asarray(constant.values).astype(np.int16) - 128, np.int8)
    for node in model.nodes():
        for tensor in node.outputs:
            if tensor.dtype == np.uint8:
                tensor.dtype = np.dtype(np.int8)


def agrees(model: Model, folder: Path) -> None:
    for rules in ("native", "arm"):
        found = audit(model, rules=rules)
        saved = executed(model, folder, rules == "arm")
        assert Counter(n.kernel for n in found.integer) == {k: n for k, n in saved.items() if k in INTEGER_KERNELS}
        assert Counter(n.kernel for n in found.islands) == {k: n for k, n in saved.items() if k in FLOAT_KERNELS}
        assert found.quantizations == saved["QuantizeLinear"]
        assert found.dequantizations == saved["DequantizeLinear"]
        assert all(n.why and "this combination" not in n.why for n in found.islands)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_audit_agrees_with_a_count(zoo_model: onnx.ModelProto, seed: int, tmp_path: Path) -> None:
    """All quantized, or some products left float by chance; with unsigned activations, then with signed ones."""
    model = Model.from_proto(zoo_model)
    rng = np.random.default_rng(seed)
    out = [n.name for n in model.graph.nodes if seed and rng.random() < 0.3]
    dataset = open_dataset("synthetic", model.inputs, samples=4)
    PassManager([Quant(exclude="+".join(out), calibration="minmax", bias_correction=False, measure=False)]).run(
        model, dataset
    )
    agrees(model, tmp_path)
    make_signed(model)
    agrees(model, tmp_path)


def model_of(text: str, opsets: str = '"" : 17') -> Model:
    return Model.from_proto(onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{opsets}]> {text}"))


def test_values_for_a_report(build: Callable[..., Model]) -> None:
    nodes = "[a] h = MatMul (x, w) [c] c = MatMul (w, v) [b] k = MatMul (h, c) y = Relu (k)"
    model = build(nodes, "float[4,4] w, float[4,4] v", "float[N,4] x")
    found = look(model, open_dataset("synthetic", model.inputs, samples=1))
    values = execution(model, found, "native")
    runs = {p.node: (p.runs, p.macs, p.share) for p in values.products}
    assert runs == {"a": ("float", 16, 0.5), "c": ("folded", 64, None), "b": ("float", 16, 0.5)}
    assert (values.integer, values.islands, values.folded, values.uncounted) == (0, 2, 1, 0)
    assert values.integer_share == 0.0
    assert values.versions["onnxruntime"] == ort.__version__
    assert not is_quantized(model)


def test_work_that_cannot_be_counted() -> None:
    model = model_of("g (float[2,4] x) => (float[2,2] y) { t = Transpose (x) y = MatMul (x, t) }")
    found = audit(model)
    assert (found.nodes[0].macs, found.integer_share) == (None, None)
    values = execution(model, found, "native")
    assert (values.uncounted, values.products[0].share) == (1, None)


def test_remarks_on_nodes_replace_older_ones_only() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    node = onnx.NodeProto(op_type="Relu", doc_string="kept")
    node.metadata_props.add(key="own", value="1")
    node.metadata_props.add(key="onnxopt.why", value="old")
    model.graph.nodes[0].origin = node
    once = annotated(model, audit(model)).to_proto().graph.node[0]
    assert {p.key: p.value for p in once.metadata_props} == {"own": "1", "onnxopt.kernel": "Relu"}
    assert once.doc_string == "kept"
    assert len(node.metadata_props) == 2
