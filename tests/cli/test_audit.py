"""onnxopt audit on the command line: the table, the JSON, the annotated graph, the exit codes, the errors."""

import json
from pathlib import Path

import onnx
import pytest

HERE = ("--target", "native")


@pytest.fixture
def quantized(net: Path, run) -> Path:
    """The small net, quantized but for its first convolution."""
    other = net.parent / "int8.onnx"
    done = run(
        "optimize", net, "--passes", "quant:exclude=conv1:measure=false", "--no-validate", "--quiet", "-o", other
    )
    assert done.code == 0, done.err
    return other


def test_the_table(quantized: Path, run) -> None:
    done = run("audit", quantized)
    assert done.code == 0, done.err
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line.strip()}
    assert rows["conv1"][1:3] == ["Conv", "float"]
    assert rows["conv3"][1:3] == ["Conv", "QLinearConv"]
    assert rows["gemm"][1:3] == ["Gemm", "QGemm"]
    text = " ".join(done.out.split())
    assert "is float" in text
    assert "quantize its input and its weight" in text
    assert "3 integer, 1 float, 0 folded into constants" in text
    assert "MACs in integer kernels 98.5 %" in text
    assert "QLinearGlobalAveragePool" not in done.out
    assert "QLinearGlobalAveragePool" in run("audit", quantized, "--verbose").out


def test_the_report(quantized: Path, run) -> None:
    report = quantized.parent / "audit.json"
    assert run("audit", quantized, "--report", report, "--quiet") == (0, "", "")
    found = json.loads(report.read_text())
    assert found["schema"] == "onnxopt-audit-1"
    assert (found["rules"], found["integer"], found["islands"], found["folded"], found["uncounted"]) == (
        *("native", 3, 1, 0, 0),
    )
    macs = {p["node"]: p["macs"] for p in found["products"]}
    assert macs == {"conv1": 32**3 * 27, "conv2": 64 * 32**2 * 288, "conv3": 64 * 32**2 * 576, "gemm": 640}
    share = 1 - macs["conv1"] / sum(macs.values())
    assert found["integer_share"] == pytest.approx(share)
    assert [p["runs"] for p in found["products"]] == ["float", "integer", "integer", "integer"]
    assert found["operators"]["QLinearConv"] == 2
    assert sum(step["left"] for step in found["steps"]) == found["quantizations"] + found["dequantizations"]


def test_the_annotated_model(quantized: Path, run) -> None:
    onnx_before = quantized.read_bytes()
    seen = quantized.parent / "seen.onnx"
    assert run("audit", quantized, "--annotate", seen, "--quiet").code == 0
    model = onnx.load(seen)
    onnx.checker.check_model(model)
    remarks = {n.name: {p.key: p.value for p in n.metadata_props} for n in model.graph.node}
    assert remarks["conv3"] == {"onnxopt.kernel": "QLinearConv"}
    assert remarks["conv1"]["onnxopt.kernel"] in ("Conv", "FusedConv")
    assert remarks["conv1"]["onnxopt.mend"] == "quantize its input and its weight"
    assert all("onnxopt.kernel" in r for r in remarks.values())
    for node in model.graph.node:
        del node.metadata_props[:]
    assert [n.SerializeToString() for n in model.graph.node] == [
        n.SerializeToString() for n in onnx.load(quantized).graph.node
    ]
    assert quantized.read_bytes() == onnx_before
    assert run("audit", seen, "--annotate", quantized.parent / "again.onnx", "--quiet").code == 0
    assert len(onnx.load(quantized.parent / "again.onnx").graph.node[-1].metadata_props) == 1


@pytest.mark.parametrize(("least", "code", "word"), [("90%", 0, "holds"), ("99%", 1, "fails"), ("0.9", 0, "holds")])
def test_a_least_share(least: str, code: int, word: str, quantized: Path, run) -> None:
    done = run("audit", quantized, "--min-integer", least)
    assert done.code == code
    assert f"{word}: {90 if code == 0 else 99}.0 % of the MACs in integer kernels wanted" in done.out


def test_a_model_without_products_fails_every_share(tmp_path: Path, run) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert run("audit", tmp_path / "m.onnx").code == 0
    assert run("audit", tmp_path / "m.onnx", "--min-integer", "0%", "--quiet").code == 0
    assert run("audit", tmp_path / "m.onnx", "--min-integer", "1%", "--quiet").code == 1


def test_the_other_rules(quantized: Path, run) -> None:
    done = run("audit", quantized, "--rules", "arm")
    assert done.code == 0
    assert "rules                     arm" in done.out


def test_a_free_dimension(quantized: Path, run) -> None:
    report = quantized.parent / "audit.json"
    assert run("audit", quantized, "--dim", "N=3", "--report", report, "--quiet").code == 0
    assert json.loads(report.read_text())["products"][3]["macs"] in (640, 1920)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--annotate", "{model}"], "--annotate names {model}, which is read or written for something else"),
        (["--report", "{model}"], "--report names {model}, which is read or written for something else"),
        (["--annotate", "a.onnx", "--report", "a.onnx"], "--report names a.onnx, which is read or written"),
        (["--annotate", "{folder}"], "{folder} is a folder: name a file with --annotate"),
        (["--annotate", "nowhere/a.onnx"], "nowhere"),
        (["--rules", "riscv"], "--rules"),
        (["--min-integer", "much"], "--min-integer"),
        (["--dim", "N"], "is no dimension"),
    ],
)
def test_errors(options, message: str, net: Path, run) -> None:
    before = net.read_bytes()
    names = {"model": net, "folder": net.parent}
    done = run("audit", net, *(o.format(**names) for o in options))
    assert done.code == 2
    assert done.out == ""
    assert message.format(**names) in done.err
    assert net.read_bytes() == before


def test_a_model_that_cannot_be_read(net: Path, run) -> None:
    net.write_text("this is text")
    done = run("audit", net)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert "is not an ONNX model" in done.err


def test_a_model_that_the_runtime_cannot_load(net: Path, run) -> None:
    model = onnx.load(net)
    model.graph.node[2].domain = "acme"
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    net.write_bytes(model.SerializeToString())
    done = run("audit", net)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert "cannot load the model" in done.err


def test_validate_says_what_is_executed(net: Path, quantized: Path, run) -> None:
    report = net.parent / "r.json"
    done = run("validate", *HERE, net, quantized, "--min-speedup", "0", "--min-sqnr", "1", "--report", report)
    assert done.code == 0, done.err
    assert "1 product float" in " ".join(done.out.split())
    entry = json.loads(report.read_text())["validation"][0]
    assert entry["islands"] == 1
    assert entry["integer_share"] == pytest.approx(0.985, abs=1e-3)
    assert entry["conversions"] == 1
    assert run("validate", *HERE, net, net, "--min-speedup", "0", "--report", report, "--quiet").code == 0
    entry = json.loads(report.read_text())["validation"][0]
    assert (entry["islands"], entry["integer_share"], entry["conversions"]) == (None, None, None)
