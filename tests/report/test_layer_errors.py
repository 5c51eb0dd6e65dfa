"""Errors by layer: the worst first, and no more than can be read."""

from __future__ import annotations

import math
from typing import Any

import pytest

from onnxopt.report.layer_errors import layer_errors


def test_repairs() -> None:
    records = [{"layer": f"l{i}", "before": 0.5, "after": i / 100} for i in range(25)]
    (found,) = layer_errors({"repaired": [*records, {"layer": "odd", "before": math.inf, "after": 0.1}]})
    assert "before and after its repair" in found.title
    assert (len(found.layers), found.others) == (20, 5)
    first = found.layers[0]
    assert (first.layer, first.before, first.after, first.figure) == ("l24", 1.0, pytest.approx(0.48), "0.5 → 0.24")


def test_harm() -> None:
    layers = [{"layer": "a", "sqnr_db": 60.0}, {"layer": "b", "sqnr_db": 40.0}, {"layer": "c", "sqnr_db": math.inf}]
    (found,) = layer_errors({"left_float": layers})
    assert [(e.layer, e.before, e.after, e.figure) for e in found.layers] == [
        ("b", None, 1.0, "40.0 dB"),
        ("a", None, pytest.approx(0.1), "60.0 dB"),
    ]


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"layers": 12},
        {"layers": [{"layer": "a"}]},
        {"repaired": [{"layer": "a", "before": 0.0, "after": 0.0}]},
        {"left_float": []},
        {"left_float": [{"layer": "a", "sqnr_db": None}]},
    ],
)
def test_what_tells_no_errors(figures: dict[str, Any]) -> None:
    assert layer_errors(figures) == []
