"""sensitivity, optimize --dry-run, and the budget of quant, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from onnxopt.core import spec


def test_sensitivity_ranks_the_layers(net: Path, run) -> None:
    report = net.parent / "r.json"
    done = run("sensitivity", net, "--samples", "16", "--report", report)
    assert done.code == 0, done.err
    found = json.loads(report.read_text())
    assert found["schema"] == "onnxopt-sensitivity-1"
    assert {row["layer"] for row in found["layers"]} == {"conv1", "conv2", "conv3", "gemm"}
    sqnr = [float(row["sqnr_db"]) for row in found["layers"]]
    assert sqnr == sorted(sqnr)
    assert set(found["layers"][0]) == {
        *("layer", "op", "share", "sqnr_db", "gain_db", "agreement", "accuracy_drop", "lost_ms"),
    }
    assert found["samples"] == 4
    assert "all 4 in integers" in done.out
    assert "conv2" in done.out


def test_sensitivity_of_what_cannot_be_quantized(net: Path, run) -> None:
    model = onnx.load(net)
    relu = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["image"], ["y"])],
        "g",
        model.graph.input,
        [onnx.helper.make_tensor_value_info("y", 1, ["N", 3, 32, 32])],
    )
    onnx.save(onnx.helper.make_model(relu, opset_imports=model.opset_import, ir_version=8), net)
    done = run("sensitivity", net)
    assert done.code == 2
    assert f"error: no layer of {net} can run in integers: it has none; onnxopt inspect tells more" in done.err


def test_sensitivity_of_a_quantized_model(net: Path, run) -> None:
    other = net.parent / "int8.onnx"
    spec = "quant:measure=false"
    assert run("optimize", net, "-p", spec, "--samples", "8", "--no-validate", "-q", "-o", other).code == 0
    done = run("sensitivity", other)
    assert done.code == 2
    assert "is quantized already" in done.err
    done = run("optimize", other, "-p", "quant", "--dry-run")
    assert done.code == 1
    assert "nothing would be gained by quant: the model is quantized already" in done.out


def test_a_dry_run_tells_and_writes_nothing(net: Path, run) -> None:
    report = net.parent / "r.json"
    before = set(net.parent.iterdir())
    done = run(
        "optimize",
        net,
        "-p",
        "quant:exclude=conv1,prune,svd:latency=-10%,sparsify,cluster",
        "--samples",
        "16",
        "--dry-run",
        "--report",
        report,
    )
    assert done.code == 0, done.err
    assert set(net.parent.iterdir()) == before | {report}
    found = json.loads(report.read_text())
    assert found["schema"] == "onnxopt-dry-run-1"
    steps = {step["spec"]: step for step in found["passes"]}
    assert steps["fold-bn"]["changed"] == 1
    assert steps["prune"]["asked"]
    assert steps["prune"]["figures"]["channels"][1] == steps["prune"]["changed"] > 0
    assert steps["svd:latency=-10%"]["asked"] is False
    quant = steps["quant:exclude=conv1"]
    assert quant["changed"] == 3
    assert quant["skips"] == [{"code": "excluded", "node": "conv1", "why": "excluded"}]
    assert 0.5 < quant["figures"]["integer_share"] < 1
    assert steps["cluster"]["changed"] == 4
    assert "of weights instead of" in done.out
    assert "compressed instead of" in done.out
    assert "excluded: excluded" in done.out
    assert "nothing was run or written" in done.out


def test_a_dry_run_of_a_quiet_refusal(net: Path, run) -> None:
    done = run("optimize", net, "-p", "quant:exclude=*", "--dry-run", "-q")
    assert (done.code, done.out) == (1, "")


def test_a_budget_in_percent_and_in_decibels(net: Path, run) -> None:
    report = net.parent / "r.json"
    spec = "quant:max-drop=0.5%:min-sqnr=100:measure=false"
    done = run("optimize", net, "-p", spec, "--samples", "32", "--no-validate", "--report", report)
    assert done.code == 0, done.err
    step = json.loads(report.read_text())["passes"][-1]
    assert step["spec"] == "quant:max-drop=0.005:min-sqnr=100.0:measure=false"
    assert step["figures"]["goal"].startswith("missed by ")
    assert step["figures"]["layers"] >= 1
    assert step["figures"]["judged_on"] == 6


def test_a_budget_that_is_none(net: Path, run) -> None:
    done = run("optimize", net, "-p", "quant:max-drop=150%")
    assert done.code == 2
    assert "quant: max-drop is a share, not 1.5; write for example 0.5% or 0.005" in done.err
    assert "quant:max-drop is 'x%', which is no" in run("optimize", net, "-p", "quant:max-drop=x%").err


def test_advice(net: Path, run, monkeypatch) -> None:
    known = {n: p for n, p in spec.known_passes().items() if p.exact or n in ("quant", "quant-dynamic")}
    monkeypatch.setattr(spec, "known_passes", lambda: known)
    report = net.parent / "r.json"
    done = run("inspect", net, "--advise", "--samples", "16", "--report", report)
    assert done.code == 0, done.err
    found = json.loads(report.read_text())
    assert found["schema"] == "onnxopt-advice-1"
    assert [p["spec"] for p in found["passes"]] == ["quant", "quant-dynamic"]
    assert any(o["layer"] == "conv2" and o["spec"] == "quant" for o in found["offers"])
    assert "it pays to run" in done.out


def test_advice_or_coupling(net: Path, run) -> None:
    done = run("inspect", net, "--advise", "--coupling")
    assert done.code == 2
    assert "give one" in done.err
