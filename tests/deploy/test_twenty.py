"""Broken and hostile models and policies: each fails the check that should catch it, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxopt.deploy.policy import Policy, read_policy
from onnxopt.deploy.run import check
from onnxopt.deploy.subject import Subject
from onnxopt.deploy.write import write_check
from onnxopt.errors import SpecError, TargetError
from onnxopt.targets.find import find_way
from onnxopt.targets.spec import parse_targets
from onnxopt.targets.way import Unavailable

# Every case runs all checks but that of other processors, which has cases of its own.
HERE = {"checks": {"skip": ["targets"]}}
X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None])


@dataclass(frozen=True)
class Case:
    """A model on disk, and what is demanded of it."""

    path: Path
    policy: dict[str, Any] | None = None
    data: Path | None = None


def small(body: str = "y = MatMul(x, w)", *, inputs: str = "float[N,8] x", outputs: str = "float[N,8] y",
          opset: int = 17, ir: int = 8, constants: str = "") -> onnx.ModelProto:  # fmt: skip
    """A model around a few lines of a graph; ``w`` is 8x8 weights."""
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}, "corp" : 1]> g ({inputs}) => ({outputs}) '
    text += f"<float[8,8] w{constants}> {{ {body} }}"
    model = parser.parse_model(text.replace("float[8,8] w", "float[8,8] unused" if "w" not in body else "float[8,8] w"))
    weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32) / 3
    kept = [t for t in model.graph.initializer if t.name not in ("w", "unused")]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(weights, "w")])
    return model


def saved(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def graph(nodes: list[onnx.NodeProto], *constants: onnx.TensorProto, opset: int = 17) -> onnx.ModelProto:
    made = helper.make_graph(nodes, "g", [X], [Y], list(constants))
    return helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def constant(name: str, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def integer_net(scale: float, islands: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Relu, then a product in integers whose weights are as large as int8 allows; then float products of these names.

    ``scale`` is a step of the activations.
    """
    weights = np.repeat([[127, -127]], 8, axis=0).repeat(4, axis=1)
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("QuantizeLinear", ["positive", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"]),
        helper.make_node("MatMul", ["d", "dw"], ["m"], name="product"),
        helper.make_node("QuantizeLinear", ["m", "ms", "mz"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "ms", "mz"], ["t0"]),
        *(helper.make_node("MatMul", [f"t{i}", "v"], [f"t{i + 1}"], name=name) for i, name in enumerate(islands)),
    ]
    nodes[-1].output[0] = "y"
    return graph(
        nodes,
        *(constant("s", scale), constant("z", 0, np.uint8), constant("ws", 0.01), constant("wz", 0, np.int8)),
        *(constant("w", weights, np.int8), constant("ms", 255 * scale / 12), constant("mz", 128, np.uint8)),
        *([constant("v", np.eye(8))] if islands else []),
    )


def beside(folder: Path, **location: str) -> Path:
    """A model whose weights are said to lie in another file."""
    model = small()
    weight = model.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.ClearField("raw_data")
    for key, value in location.items():
        weight.external_data.add(key=key, value=value)
    return saved(model, folder)


def data(folder: Path, values: npt.NDArray[Any], labels: npt.NDArray[Any] | None = None) -> Path:
    path = folder / "data.npz"
    x = values.astype(np.float32)
    if labels is None:
        np.savez(path, x=x)
    else:
        np.savez(path, x=x, labels=labels)
    return path


def truncated(folder: Path) -> Case:
    path = saved(small(), folder)
    path.write_bytes(path.read_bytes()[:-100])
    return Case(path)


def cycle(folder: Path) -> Case:
    return Case(saved(small("a = Add(x, b)  b = Relu(a)  y = MatMul(b, w)"), folder))


def dangling_input(folder: Path) -> Case:
    return Case(saved(small("y = Add(x, nothing)"), folder))


def wrong_type(folder: Path) -> Case:
    return Case(saved(small("a = Cast<to=7>(x)  b = Relu(x)  c = Add(a, b)  y = MatMul(c, w)"), folder))


def deep_nesting(folder: Path) -> Case:
    """Bodies within bodies, more than a reader of such messages follows."""

    def field(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    body = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "b", [], [Y]).SerializeToString()
    for _ in range(200):
        body = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, body)))
    path = folder / "model.onnx"
    path.write_bytes(bytes([8, 8]) + field(7, body) + field(8, bytes([16, 17])))
    return Case(path)


def too_new_an_opset(folder: Path) -> Case:
    return Case(saved(small(opset=21, ir=9), folder), {"opset": {"ort": "1.15"}})


def too_new_an_ir(folder: Path) -> Case:
    return Case(saved(small(ir=11), folder), {"opset": {"ort": "1.15"}})


def unknown_operator(folder: Path) -> Case:
    return Case(saved(small("a = corp.Secret(x)  y = MatMul(a, w)"), folder))


def no_kernel(folder: Path) -> Case:
    body = "a = Cast<to=16>(x)  b = Cast<to=16>(w)  c = Gemm(a, b)  d = Erf(c)  y = Cast<to=1>(d)"
    return Case(saved(small(body), folder))


def forbidden_operator(folder: Path) -> Case:
    return Case(saved(small("a = Erf(x)  y = MatMul(a, w)"), folder), {"operators": {"forbid": ["Erf"]}})


def weights_missing(folder: Path) -> Case:
    return Case(beside(folder, location="weights.bin", offset="0", length="256"))


def weights_outside(folder: Path) -> Case:
    inside = folder / "inside"
    inside.mkdir()
    (folder / "weights.bin").write_bytes(bytes(256))
    return Case(beside(inside, location="../weights.bin", offset="0", length="256"))


def weights_too_short(folder: Path) -> Case:
    (folder / "weights.bin").write_bytes(bytes(200))
    return Case(beside(folder, location="weights.bin", offset="0", length="256"))


def too_large(folder: Path) -> Case:
    return Case(saved(small(), folder), {"size": {"max": 100}})


def too_much_memory(folder: Path) -> Case:
    return Case(saved(small(), folder), {"memory": {"max": "1kB"}})


def endless_memory(folder: Path) -> Case:
    """A few bytes that ask for terabytes."""
    body = "big = Expand(x, sizes)  y = ReduceSum<keepdims=0>(big)"
    return Case(saved(small(body, constants=", int64[3] sizes = {1099511627776, 1, 8}", outputs="float y"), folder))


def endless_constant(folder: Path) -> Case:
    """The same before anything runs: what is constant is computed when the model is loaded."""
    body = "big = ConstantOfShape(sizes)  sum = ReduceSum<keepdims=0>(big)  y = Add(x, sum)"
    return Case(saved(small(body, constants=", int64[1] sizes = {1099511627776}"), folder))


def endless_input(folder: Path) -> Case:
    """A sample of it would not fit into any memory."""
    body = "y = ReduceMax<keepdims=0>(x)"
    return Case(saved(small(body, inputs="float[65536,1024,1024] x", outputs="float y"), folder))


def too_slow(folder: Path) -> Case:
    return Case(saved(small(), folder), {"latency": {"max-ms": 0.000001}})


def worse_than_its_reference(folder: Path) -> Case:
    reference, other = small(), small()
    changed = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(changed, "w"))
    feeds = data(folder, np.random.default_rng(2).standard_normal((64, 8)))
    saved(reference, folder, "reference.onnx")
    return Case(saved(other, folder), {"accuracy": {"reference": "reference.onnx"}}, feeds)


def too_often_wrong(folder: Path) -> Case:
    values = np.random.default_rng(2).standard_normal((64, 8))
    feeds = data(folder, values, labels=np.zeros(64, np.int64))
    return Case(saved(small(), folder), {"accuracy": {"min-accuracy": "90%"}}, feeds)


def could_overflow(folder: Path) -> Case:
    """Weights that overflow for activations which never come."""
    feeds = data(folder, np.random.default_rng(0).uniform(0, 1, (64, 8)))
    policy = {"targets": {"run": "x86-64-avx2"}} if has_avx2() else HERE
    return Case(saved(integer_net(0.02), folder), policy, feeds)


def overflows(folder: Path) -> Case:
    """Weights and data that overflow, on a processor that the file is not said to be for."""
    if not has_avx2():
        pytest.skip("this machine cannot show another x86 processor")
    feeds = data(folder, np.random.default_rng(0).uniform(1.5, 2.5, (64, 8)))
    policy = {"targets": {"run": "x86-64-avx2"}, "saturation": {"target": "x86-64-avx512vnni"}}
    return Case(saved(integer_net(0.01), folder), policy, feeds)


def has_avx2() -> bool:
    return not isinstance(find_way(parse_targets("x86-64-avx2")[0]), Unavailable)


def nan_of_zeros(folder: Path) -> Case:
    return Case(saved(small("a = ReduceL2<axes=[1]>(x)  b = Div(x, a)  y = MatMul(b, w)"), folder))


def infinite_at_the_ends(folder: Path) -> Case:
    """Mixed signs cancel in ordinary samples; at the ends of the range they do not."""
    values = np.random.default_rng(0).uniform(-20, 20, (64, 8))
    body = "a = ReduceSum<keepdims=1>(x)  b = Exp(a)  c = Log(b)  d = Mul(x, c)  y = MatMul(d, w)"
    return Case(saved(small(body), folder), data=data(folder, values))


def batch_baked_in(folder: Path) -> Case:
    body = "a = MatMul(x, w)  y = Reshape(a, sizes)"
    return Case(saved(small(body, constants=", int64[2] sizes = {1, 8}"), folder))


def drawn_by_chance(folder: Path) -> Case:
    return Case(saved(small("r = RandomNormalLike(x)  a = Add(x, r)  y = MatMul(a, w)"), folder))


def quantized_for_nothing(folder: Path) -> Case:
    """Steps to integers and back, but around no kernel that computes in them."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="product"),
    ]
    weights = np.random.default_rng(0).standard_normal((8, 8))
    return Case(saved(graph(nodes, constant("s", 0.02), constant("z", 128, np.uint8), constant("w", weights)), folder))


def too_little_in_integers(folder: Path) -> Case:
    return Case(saved(small(), folder), {"audit": {"min-integer-share": "90%"}})


def another_than_accepted(folder: Path) -> Case:
    report = {"schema": "onnxopt-report-1", "verdict": "accepted", "output": {"sha256": "0" * 64, "path": "m.onnx"}}
    (folder / "report.json").write_text(json.dumps(report))
    return Case(saved(small(), folder), {"provenance": {"accepted": "report.json"}})


FAILS: dict[str, list[Callable[[Path], Case]]] = {
    "structure": [truncated, cycle, dangling_input, wrong_type, deep_nesting],
    "opset": [too_new_an_opset, too_new_an_ir],
    "operators": [unknown_operator, no_kernel, forbidden_operator],
    "external-data": [weights_missing, weights_outside, weights_too_short],
    "size": [too_large],
    "memory": [too_much_memory, endless_memory, endless_constant, endless_input],
    "latency": [too_slow],
    "accuracy": [worse_than_its_reference, too_often_wrong],
    "saturation": [could_overflow],
    "targets": [overflows],
    "edges": [nan_of_zeros, infinite_at_the_ends, batch_baked_in],
    "determinism": [drawn_by_chance],
    "audit": [quantized_for_nothing, too_little_in_integers],
    "provenance": [another_than_accepted],
}


def policy_of(case: Case) -> Policy:
    demands = dict(case.policy or {})
    return Policy().with_tables(demands if "targets" in demands else demands | HERE, case.path.parent)


@pytest.mark.parametrize(
    ("name", "make"),
    [(name, make) for name, makers in FAILS.items() for make in makers],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_the_one_check_that_should_fail_does(name: str, make: Callable[[Path], Case], tmp_path: Path) -> None:
    case = make(tmp_path)
    report = check(Subject(case.path, data=case.data), policy_of(case))
    assert {f.check: f.why for f in report.findings if f.status == "failed"}.keys() == {name}, report.findings
    assert report.verdict == "failed"
    failed = next(f for f in report.findings if f.status == "failed")
    assert len(failed.why) < 1000
    assert failed.why.isprintable()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[latncy]\nmax-ms = 1", "there is no table [latncy]"),
        ("[latency]\nmax_milliseconds = 1", "[latency] has no key 'max_milliseconds'"),
        ('[latency]\nmax-ms = "fast"', "[latency] max-ms: 'fast' is no number"),
        ("[size]\nmax = -1", "[size] max"),
        ("[accuracy]\nmin-accuracy = nan", "[accuracy] min-accuracy"),
        ("[checks]\nskip = 3", "[checks] skip"),
        ("[latency", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
    ],
)
def test_a_policy_that_is_none_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(SpecError) as error:
        read_policy(tmp_path / "policy.toml")
    assert reason in str(error.value)


def test_a_required_target_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    policy = Policy().with_tables({"targets": {"require": "native+qnn"}}, tmp_path)
    with pytest.raises(TargetError, match="native\\+qnn"):
        check(Subject(saved(small(), tmp_path)), policy)


def test_a_good_model_passes(tmp_path: Path) -> None:
    report = check(Subject(saved(small(), tmp_path)), Policy().with_tables(HERE, tmp_path))
    assert report.verdict == "passed", report.findings
    assert {f.check for f in report.findings if f.status == "not run"} <= {
        "accuracy",
        "latency",
        "memory",
        "provenance",
        "size",
    }


NAMES = ("<script>alert(1)</script>", "\x1b[31mred\x07", "]]>&\"'|`*_[a](b)", "\u202egnp.exe\u2028", "n" * 10_000)


def test_names_that_mean_harm_do_none(tmp_path: Path) -> None:
    path = saved(integer_net(0.02, islands=NAMES), tmp_path)
    policy = Policy().with_tables(HERE | {"saturation": {"target": "x86-64-avx512vnni"}}, tmp_path)
    report = check(Subject(path), policy)
    assert report.verdict == "passed", report.findings
    told = next(f for f in report.findings if f.check == "audit").places
    assert set(told) == set(NAMES)
    write_check(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_bytes())["findings"][7]["places"] == list(told)
    for kind in ("xml", "sarif", "md"):
        write_check(report, tmp_path / f"report.{kind}")
        text = (tmp_path / f"report.{kind}").read_text(encoding="utf-8")
        assert not set("\x1b\x07\u202e\u2028") & set(text)
        assert len(text) < 50_000
    ElementTree.parse(tmp_path / "report.xml")
    assert "<script>" not in (tmp_path / "report.md").read_text(encoding="utf-8")
