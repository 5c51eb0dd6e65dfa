"""The benchmark's own arithmetic: who takes part, what the summary says, and that samples are what they seem."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from onnxopt.graph.signature import TensorSpec

ROOT = Path(__file__).parents[2] / "benchmarks"
FOLDER = ROOT / "quant"


@pytest.fixture
def module(monkeypatch):
    """Import one of the benchmark's modules as its scripts do."""
    monkeypatch.syspath_prepend(ROOT / "common")
    monkeypatch.syspath_prepend(FOLDER)
    yield import_module
    for name in ("samples", "tables", "texts"):
        sys.modules.pop(name, None)


def row(tool: str, sqnr: float, share: float = 1.0, speed: float = 2.0, model: str = "m") -> dict[str, object]:
    return {"model": model, "tool": tool, "sqnr_db": sqnr, "quantized_share": share, "speed": speed}


def test_who_leaves_weights_float_or_is_far_slower_takes_no_part(module) -> None:
    rows = [row("a", 30, 0.9), row("b", 40, 0.7), row("c", 50, 1.0, 0.3), {"model": "m", "tool": "d", "error": "no"}]
    assert [r["tool"] for r in module("tables").contest(rows)] == ["a"]


def test_rows_of_one_tool_are_not_each_others_rivals(module) -> None:
    rows = [row("a x", 30), row("a y", 31), row("b", 28), row("onnxopt", 33)]
    lines = module("tables").summary(rows).splitlines()[2:]
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in lines}
    works, contest, best, near, gap, behind, speed, _ = cells["a y"]
    assert (works, contest, best, near, gap, behind, speed) == ("1 of 1", "1", "0", "0", "-2.0", "+2.0", "2.00")
    assert cells["onnxopt"][2:5] == ["1", "1", "+2.0"]


@pytest.mark.parametrize(("recipe", "table"), [("prose", {"length": 64}), ("spectra", {}), ("music", {"length": 4000})])
def test_made_samples_repeat_and_calibration_is_not_evaluation(module, recipe, table) -> None:
    samples = module("samples")
    spec = TensorSpec("x", np.dtype(np.float32), ("N", 4000, 1))

    def made(calibration: bool) -> np.ndarray:
        return getattr(samples, recipe)(samples.Request(FOLDER, (spec,), table, 6, calibration))["x"]

    first = made(True)
    assert len(first) == 6
    assert np.isfinite(first).all()
    assert first.std() > 0
    assert np.array_equal(first, made(True))
    assert not np.array_equal(first, made(False))
