"""The benchmark's own arithmetic: the setting that a budget asks for, who takes part, and what the tables say."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.cost import cost
from onnxopt.graph.io import load

ROOT = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Import one of the benchmark's modules as its scripts do."""
    for folder in (ROOT / "common", ROOT / "prune", ROOT / "prune" / "peers"):
        monkeypatch.syspath_prepend(folder)
    yield import_module
    for name in ("budget", "tables", "texts"):
        sys.modules.pop(name, None)


def net(width: int = 40) -> onnx.ModelProto:
    """Three layers; the MACs are 32 * 9 * 3 * width + 32 * width + 10 * width."""
    weights = {
        "w1": np.ones((width, 3, 3, 3), np.float32),
        "w2": np.ones((width, 1, 1, 1), np.float32),
        "w3": np.ones((width, 10), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w2"], ["b"], group=width),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def row(tool: str, accuracy: float, macs: float = 0.8, model: str = "m", **more: object) -> dict[str, object]:
    figures = {"accuracy": accuracy, "accuracy_float": 0.9, "agreement": 0.5, "macs_share": macs, "speed": 1.2}
    return {"model": model, "budget": 20, "tool": tool, "parameters_share": 0.5, "seconds": 1.0} | figures | more


def test_macs_are_counted_without_the_product_as_with_it(module, tmp_path) -> None:
    onnx.save(net(), tmp_path / "net.onnx")
    model = load(tmp_path / "net.onnx")
    samples = open_dataset("synthetic", model.inputs, samples=1)
    counted = module("budget").macs(net())
    assert counted == 40 * (32 * 27 + 32 + 10)
    assert counted == cost(model, Context(model, samples).shapes(model)).total.macs


def test_the_setting_nearest_to_the_budget_from_above_is_found(module) -> None:
    tried = []

    def prune(setting: float) -> onnx.ModelProto:
        tried.append(setting)
        return net(40 - int(40 * setting))

    found = module("budget").nearest(prune, net(), 0.69)
    assert int(40 * found.setting) == 12
    assert len(tried) == found.tries + 1 <= 11
    assert module("budget").macs(found.model) == module("budget").macs(net(28))
    quick = module("budget").nearest(prune, net(), 0.69, lambda setting: net(40 - int(40 * setting)))
    assert quick.setting == found.setting
    assert len(tried) == found.tries + 2


def test_one_that_cannot_reach_the_budget_is_taken_as_far_as_it_goes(module) -> None:
    found = module("budget").nearest(lambda setting: net(40 - int(8 * setting)), net(), 0.5)
    assert module("budget").macs(found.model) == module("budget").macs(net(33))
    with pytest.raises(ValueError, match="every setting that was tried leaves less than 50%"):
        module("budget").nearest(lambda setting: net(4), net(), 0.5)


def test_who_saves_too_little_takes_no_part_and_one_row_speaks_for_a_tool(module) -> None:
    rows = [row("a l1", 0.5), row("a l2", 0.6), row("b", 0.7, 0.82), row("c", 0.8, 0.84)]
    rows.append({"model": "m", "budget": 20, "tool": "d", "ok": False, "error": "no | way"})
    assert [r["tool"] for r in module("tables").leaders(rows)] == ["b", "a l2"]
    lines = module("tables").one_budget(rows).splitlines()
    assert lines[0] == "| tool | m (90.0 %) |"
    cells = dict(line.strip("| ").split(" | ") for line in lines[2:])
    assert cells == {
        "a l1": "40.0, 1.20 x",
        "a l2": "30.0, 1.20 x",
        "b": "20.0, 1.20 x",
        "c": "(10.0, 1.20 x at 16 %)",
        "d": "fails",
    }
    assert module("tables").failures(rows).splitlines()[2:] == ["| d | m | 20 % | no / way |"]


def test_the_page_holds_every_budget_and_the_versions(module) -> None:
    results = {
        "machine": {"cpu": "one", "cores": 2, "instructions": ["avx2"]},
        "versions": {"onnxruntime": "1.0"},
        "rows": [row("onnxopt", 0.89, versions={"onnxopt": "0.1"}), row("b x", 0.7) | {"budget": 50}],
    }
    page = module("tables").document(results)
    assert "## 20 % fewer MACs" in page
    assert "| onnxopt | **1.0, 1.20 x** |" in page
    assert "| m | onnxopt | 89.0 % | 1.0 | 50.0 % | 80.0 % | 50.0 % | 1.20 x | 1.00 |" in page
    assert "| b x | (20.0, 1.20 x at 20 %) |" in page
    assert "| onnxopt | onnxopt 0.1 |" in page
    assert page.endswith("|\n")
