"""onnxopt diff on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx


def test_equal_is_zero(net: Path, run) -> None:
    done = run("diff", net, net, "--samples", "2")
    assert (done.code, done.err) == (0, "")
    assert "equal: the same graph with the same weights" in done.out


def test_different_is_one(net: Path, run) -> None:
    other, report = net.parent / "folded.onnx", net.parent / "d.json"
    assert run("optimize", net, "-p", "fold-bn", "--no-validate", "-q", "-o", other).code == 0
    done = run("diff", net, other, "--samples", "2", "--report", report)
    assert done.code == 1, done.err
    assert "removed: 1 BatchNormalization" in done.out
    assert "input 2: added float32[32]" in done.out
    found = json.loads(report.read_text())
    assert found["schema"] == "onnxopt-diff-1"
    assert found["same"] is False
    assert found["removed"] == [{"node": "norm", "op": "BatchNormalization"}]
    assert found["numbers"]["samples"] == 2
    assert {row["name"] for row in found["numbers"]["tensors"]} >= {"n1", "r1", "c2"}
    everything = run("diff", net, other, "--samples", "2", "-v")
    assert "relu3" in everything.out
    assert "relu3" not in done.out


def test_quiet_tells_by_its_code(net: Path, run) -> None:
    assert run("diff", net, net, "--samples", "1", "-q") == (0, "", "")


def test_what_is_wrong_is_two(net: Path, run, tmp_path: Path) -> None:
    done = run("diff", net, tmp_path / "none.onnx")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    assert run("diff", net, tmp_path / "bad.onnx").code == 2
    assert run("diff", net).code == 2
    done = run("diff", net, net, "--report", net)
    assert done.code == 2
    assert "--report names" in done.err


def test_other_inputs_are_told(net: Path, run) -> None:
    model = onnx.load(net)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16
    other = net.parent / "other.onnx"
    onnx.save(model, other)
    done = run("diff", net, other, "--samples", "1")
    assert done.code == 1, done.err
    assert "input 0" in done.out
