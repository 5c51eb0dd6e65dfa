"""Local functions put where they are called: names, attributes, weights, versions, and what passes then find inside."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, inliner, numpy_helper

from onnxopt.core.manager import PassManager
from onnxopt.data.dataset import open_dataset
from onnxopt.graph import inlining
from onnxopt.graph.io import load, save
from onnxopt.graph.model import Model
from onnxopt.graph.verify import faults
from onnxopt.passes.inline_functions import InlineFunctions
from onnxopt.passes.prune import Prune
from onnxopt.passes.quant import Quant
from onnxopt.passes.quant_dynamic import QuantDynamic
from onnxopt.runtime.session import Session

INLINE = InlineFunctions()
HEADER = '<ir_version: 10, opset_import: ["" : 18, "own" : 1]>\n'
BLOCK = '<domain: "own", opset_import: ["" : 18]> block <alpha: float = 0.25> (x, w) => (y) '
LEAKY = BLOCK + "{ h = MatMul (x, w) y = LeakyRelu <alpha: float = @alpha> (h) }"
CONV = '<domain: "own", opset_import: ["" : 18]> conv (x, w, b) => (y) '
CONV += "{ [c] h = Conv <pads=[1,1,1,1]> (x, w, b) [r] y = Relu (h) }"


def test_calls_in_graphs_bodies_and_functions(check_pass, parse):
    text = """g (float[N,4] x, bool go) => (float[] y) <float[4,4] w> {
        h = own.block <alpha=0.5> (x, w)
        k = own.twice (h, w)
        y = If (go) <then_branch = a () => (float[N,4] p) { p = own.block (k, w) },
                     else_branch = b () => (float[N,4] q) { q = Identity (k) }> }"""
    twice = '<domain: "own", opset_import: ["" : 18]> twice (x, w) => (y) { h = own.block (x, w) y = own.block (h, w) }'
    feed = {"x": np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32), "go": np.array(True)}
    outcome = check_pass(
        INLINE,
        parse(HEADER + text + LEAKY + twice.replace('["" : 18]', '["" : 18, "own" : 1]')),
        feed=feed,
        ops="MatMul LeakyRelu " * 4 + "If Identity",
        changed=3,
    )
    slopes = [n.attrs["alpha"] for n in outcome.model.nodes() if n.op == "LeakyRelu"]
    assert sorted(slopes) == [0.25, 0.25, 0.25, 0.5]
    assert not outcome.model.header.functions


def test_domains_that_only_functions_import(check_pass, parse):
    gelu = '<domain: "own", opset_import: ["" : 18, "com.microsoft" : 1]> f (x) => (y) { y = com.microsoft.Gelu (x) }'
    proto = parse(HEADER + "g (float[N,4] x) => (float[N,4] y) { y = own.f (x) }" + gelu)
    assert check_pass(INLINE, proto, ops="Gelu", changed=1).model.opset_of("com.microsoft") == 1


def test_the_rest_is_as_before(parse):
    proto = parse(
        HEADER + "g (float[N,4] x) => (float[] z) <float[4,4] w> { y = own.block (x, w) z = Abs (y) }" + LEAKY
    )
    proto.graph.node[1].name = "absolute"
    proto.graph.node[1].doc_string = "kept"
    proto.graph.node[1].metadata_props.add(key="a", value="b")
    proto.metadata_props.add(key="c", value="d")
    model = Model.from_proto(proto)
    assert INLINE.run(model, None).changed == 1
    after = model.to_proto()
    assert after.graph.node[-1] == proto.graph.node[1]
    assert after.metadata_props == proto.metadata_props
    assert after.graph.initializer == proto.graph.initializer


def test_names_that_are_taken(check_pass, parse):
    text = "g (float[N,4] x) => (float[] y) <float[4,4] w> { h__1 = Abs (x) h = Neg (h__1) y = own.block (h, w) }"
    check_pass(INLINE, parse(HEADER + text + LEAKY), ops="Abs Neg MatMul LeakyRelu", changed=1)


def test_models_without_functions_are_not_touched(check_pass, parse, monkeypatch):
    monkeypatch.setattr(inlining.inliner, "inline_local_functions", None)
    check_pass(INLINE, parse("g (float[N] x) => (float[] y) { y = Relu (x) }"), changed=0)


def test_functions_that_nobody_calls(check_pass, parse):
    check_pass(INLINE, parse(HEADER + "g (float[N] x) => (float[] y) { y = Relu (x) }" + LEAKY), ops="Relu", changed=0)


def test_weights_stay_in_their_file(parse, tmp_path):
    proto = parse(HEADER + "g (float[N,64] x) => (float[] y) <float[64,64] w> { y = own.block (x, w) }" + LEAKY)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = load(tmp_path / "m.onnx")
    before = Session(model).run({"x": np.eye(64, dtype=np.float32)})["y"]
    assert INLINE.run(model, None).changed == 1
    (weight,) = model.constants()
    assert weight._values.raw.base is not None
    assert len(model.mapped) == 1
    save(model, tmp_path / "n.onnx")
    assert np.array_equal(Session(load(tmp_path / "n.onnx")).run({"x": np.eye(64, dtype=np.float32)})["y"], before)


def test_calls_share_the_weights_inside_functions(monkeypatch):
    proto = onnx.parser.parse_model(
        HEADER + "g (float[N,64] x) => (float[N,64] y) { h = own.f (x) y = own.f (h) }" + FIXED
    )
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    proto.functions[0].node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(values))
    sizes = []
    original = inliner.inline_local_functions

    def watch(given, **options):
        sizes.append(given.ByteSize())
        return original(given, **options)

    monkeypatch.setattr(inlining.inliner, "inline_local_functions", watch)
    model = Model.from_proto(proto)
    feed = {"x": np.eye(64, dtype=np.float32)}
    before = Session(model, optimize=False).run(feed)["y"]
    assert INLINE.run(model, None).changed == 2
    first, second = (c._values for c in model.constants())
    assert first is second or first.tensor.raw_data == second.tensor.raw_data
    assert sizes[0] < values.nbytes / 8
    assert np.array_equal(Session(model, optimize=False).run(feed)["y"], before)


FIXED = (
    '<domain: "own", opset_import: ["" : 18]> f (x) => (y) { w = Constant <value = float[1] {1}> () y = MatMul (x, w) }'
)
OLD = '<domain: "own", opset_import: ["" : 11]> old (x) => (y) '


def test_functions_of_an_older_opset_are_converted():
    old = OLD + "{ u = Unsqueeze <axes=[0]> (x) h = Relu (u) y = Squeeze <axes=[0]> (h) }"
    text = HEADER + "g (float[N,4] x) => (float[N,4] y) { y = own.old (x) }" + old
    model = Model.from_proto(onnx.parser.parse_model(text))
    assert INLINE.run(model, None).changed == 1
    assert faults(model) == []
    x = np.array([[-1, 2, -3, 4]], np.float32)
    assert np.array_equal(Session(model).run({"x": x})["y"], np.maximum(x, 0))


def test_functions_that_cannot_be_converted(monkeypatch):
    original = inliner.inline_local_functions

    def fail(proto, convert_version=False):
        if convert_version:
            raise RuntimeError("no adapter")
        return original(proto)

    monkeypatch.setattr(inlining.inliner, "inline_local_functions", fail)
    text = "g (float[N,4] x, float[4,4] w) => (float[N,4] z) { y = own.block (x, w) h = own.old (y) z = Abs (h) }"
    proto = onnx.parser.parse_model(HEADER + text + LEAKY + OLD + "{ y = Relu (x) }")
    model = Model.from_proto(proto)
    result = INLINE.run(model, None)
    assert result.changed == 1
    assert [n.op for n in model.nodes()] == ["MatMul", "LeakyRelu", "old", "Abs"]
    (skip,) = result.skips
    assert skip.node == "own.old"
    assert skip.why == "it is written for opset 11, the model for 18, and cannot be converted: export with one opset"


def test_what_the_inliner_cannot_do(parse, monkeypatch):
    def fail(proto, convert_version=False):
        raise RuntimeError("first\nthe message is too large")

    monkeypatch.setattr(inlining.inliner, "inline_local_functions", fail)
    proto = parse(HEADER + "g (float[N,4] x) => (float[] y) <float[4,4] w> { y = own.block (x, w) }" + LEAKY)
    model = Model.from_proto(proto)
    (skip,) = INLINE.run(model, None).skips
    assert skip.why == "cannot put local functions where they are called: the message is too large"
    assert model.to_proto() == proto


@pytest.mark.parametrize(
    ("step", "op"),
    [(Quant(effort="fast", activations="static"), "QuantizeLinear"), (Prune(ratio=0.5, keep_ends=False), "Conv")],
)
def test_passes_look_inside(step, op):
    def conv(x, y, i):
        return helper.make_node("conv", [x, f"w{i}", f"b{i}"], [y], domain="own", name=f"call{i}")

    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((8, c, 3, 3)) / 5 for i, c in ((0, 4), (1, 8))}
    weights |= {f"b{i}": rng.standard_normal(8) / 5 for i in (0, 1)}
    graph = onnx.parser.parse_graph("g (float[N,4,8,8] x) => (float[N,8,8,8] y) { }")
    graph.node.extend([conv("x", "h", 0), conv("h", "y", 1)])
    graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    function = onnx.parser.parse_function(CONV)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    proto = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=10)
    onnx.checker.check_model(proto)
    model = Model.from_proto(proto)
    before = model.clone()
    data = open_dataset("synthetic", model.inputs, samples=32)
    report = PassManager([step]).run(model, data)
    assert report.passes[0].spec == "inline-functions"
    assert op in {n.op for n in model.nodes()}
    assert report.passes[-1].changed > 0
    if step.name == "quant":
        assert report.passes[-1].figures["integer_kernels"] == 2
        feed = next(iter(data.batches(8)))
        exact, rounded = (Session(m).run(feed)["y"] for m in (before, model))
        assert np.square(exact - rounded).sum() < 1e-3 * np.square(exact).sum()


def test_layers_in_functions_get_dynamic_scales(parse):
    text = "g (float[N,512] x) => (float[] y) <float[512,512] w> { y = own.block (x, w) }"
    model = Model.from_proto(parse(HEADER + text + LEAKY))
    report = PassManager([QuantDynamic()]).run(model, open_dataset("synthetic", model.inputs, samples=4))
    assert report.passes[-1].figures["layers"] == 1
