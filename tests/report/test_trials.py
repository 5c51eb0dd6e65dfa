"""Trials as points of a plot: which are in front, which was chosen, and what is no trial."""

from __future__ import annotations

import math
from typing import Any

import pytest

from onnxopt.report.trials import trials


def test_mixes() -> None:
    left = [{"layer": "a", "lost_ms": 0.2}, {"layer": "b", "lost_ms": -0.1}]
    tried = [[0, 0.0, 30.0], [4, 0.5, 41.0], [2, 0.2, 35.0], [2, 0.3, 34.0], [5, 0.6, math.nan]]
    found = trials({"trials": tried, "left_float": left})
    assert found is not None
    assert [(t.name, t.front, t.chosen) for t in found.trials] == [
        ("0 layers float", True, False),
        ("2 layers float", True, True),
        ("2 layers float", False, False),
        ("4 layers float", True, False),
    ]
    assert found.layout.across[0].value == 0
    assert found.layout.up[0].value == 30
    (first, *_, last) = found.layout.points
    assert first == (found.layout.left, found.layout.bottom)
    assert last[0] == pytest.approx(found.layout.right)


def test_forms() -> None:
    found = trials({"forms": {"static": [2.0, 28.0], "dynamic": [1.25, 33.0]}, "activations": "static"})
    assert found is not None
    assert [(t.name, t.cost, t.chosen, t.front) for t in found.trials] == [
        ("static scales", 0.5, True, True),
        ("dynamic scales", 0.8, False, True),
    ]


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"trials": [[0, 0.0, 30.0]], "left_float": []},
        {"trials": "no", "left_float": []},
        {"trials": 5},
        {"trials": [[1, 2]], "left_float": [{}]},
        {"forms": {"static": [2.0, 28.0], "dynamic": "it fell out"}},
        {"forms": {"static": [None, 28.0], "dynamic": [None, 33.0]}},
        {"forms": ["static"]},
    ],
)
def test_what_is_no_set_of_trials(figures: dict[str, Any]) -> None:
    assert trials(figures) is None
