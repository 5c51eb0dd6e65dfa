"""inspect --coupling: which channels go together, before anything is cut."""

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper


def cells(text: str) -> list[list[str]]:
    """Each line cut into cells: two spaces or more stand between them."""
    return [[c.strip() for c in line.split("  ") if c.strip()] for line in text.splitlines()]


def test_who_is_tied_to_whom(tmp_path: Path, run, zoo) -> None:
    onnx.save(zoo["residual"](), tmp_path / "m.onnx")
    done = run("inspect", tmp_path / "m.onnx", "--coupling")
    assert done.code == 0, done.err
    rows = cells(done.out)
    assert ["made by", "read by", "channels", "in classes", "why they stay"] in rows
    assert ["Conv0, Conv6, Conv13", "Conv3, Conv10, Conv17 + 1 more", "16", "16"] in rows
    assert ["Gemm34", "5", "'gemm34' is an output of the model"] in rows
    assert ["'gemm34' is an output of the model", "Gemm34", "160"] in rows
    assert "could change" not in done.out  # no pass was tried
    assert "Conv17, Conv22" in run("inspect", tmp_path / "m.onnx", "--coupling", "--verbose").out


def test_parts_of_a_concat(tmp_path: Path, run, zoo) -> None:
    onnx.save(zoo["densely_connected"](), tmp_path / "m.onnx")
    rows = cells(run("inspect", tmp_path / "m.onnx", "--coupling", "--data", "synthetic").out)
    assert ["Conv0", "Conv3, Conv8, Conv13 + 1 more", "16", "16"] in rows
    assert ["Conv10", "Conv13, Conv17", "16", "16"] in rows


def test_unknown_operators_are_named_with_what_they_cost(tmp_path: Path, run, net) -> None:
    model = onnx.load(net)
    relu = next(n for n in model.graph.node if n.name == "relu2")
    relu.op_type, relu.domain = "Trilu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "m.onnx")
    done = run("inspect", tmp_path / "m.onnx", "--coupling", "--report", tmp_path / "r.json", "--quiet")
    assert done == (0, "", "")
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["schema"], found["passes"]) == ("onnxopt-inspection-1", [])
    why = "com.microsoft.Trilu 'relu2' has no rule"
    assert found["coupling"]["frozen"][0] == {"why": why, "layers": ["conv2"], "parameters": 64 * 32 * 9}
    assert found["coupling"]["groups"][0] == {
        "makers": ["conv1"], "readers": ["conv2"], "channels": 32, "classes": 32, "why": "", "kept": None,
    }  # fmt: skip
    assert {g["makers"][0]: g["why"] for g in found["coupling"]["groups"]}["conv2"] == why


def test_a_model_without_layers(tmp_path: Path, run) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    done = run("inspect", tmp_path / "m.onnx", "--coupling")
    assert "no layer of this model makes channels that could go" in done.out
