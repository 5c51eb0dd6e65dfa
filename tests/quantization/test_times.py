"""Measured times decide what runs in integers, layers too."""

from __future__ import annotations

from math import inf

import pytest

from onnxopt.graph import shapes
from onnxopt.quantization.placement import place
from onnxopt.quantization.times import Times

WEIGHTS = "float[8,8,3,3] w, float[8,8,3,3] v"
CHAIN = "[one] h = Conv (x, w) [relu] r = Relu (h) [two] y = Conv (r, v)"


def placed(net, times):
    specs = shapes.specs(net)
    sizes = {name: s.shape for name, s in specs.items() if s.shape is not None}
    return place(net, sizes, specs, times=times), sizes


def layers(placement):
    return [u.node.name for u in placement.units]


def test_layers_are_integers_until_both_forms_were_measured(build):
    net = build(CHAIN, WEIGHTS)
    floats = {"one": 1e-9, "two": 1e-9}
    assert layers(placed(net, Times(floats=floats))[0]) == ["one", "two"]
    assert layers(placed(net, Times(integers=floats))[0]) == ["one", "two"]


@pytest.mark.parametrize(
    ("one", "two", "left"),
    [(1e-3, 1e-3, ["one", "two"]), (10e-3, 1e-3, ["two"]), (1e-3, 10e-3, ["one"]), (4.9e-3, 4.9e-3, ["one", "two"])],
)
def test_what_measures_slower_is_left_float(build, one, two, left):
    times = Times({"one": 5e-3, "two": 5e-3}, {"one": one, "two": two}, {"x": 1e-6, "r": 1e-6}, {"y": 1e-6, "r": 1e-6})
    assert layers(placed(build(CHAIN, WEIGHTS), times)[0]) == left


def test_a_region_that_gains_less_than_its_steps_cost_is_left_float(build):
    times = Times({"one": 5e-3, "two": 5e-3}, {"one": 4e-3, "two": 4e-3}, {"x": 2e-3}, {"y": 2e-3})
    placement, _ = placed(build(CHAIN, WEIGHTS), times)
    assert not placement.units
    assert [s.node for s in placement.skips] == ["one", "two"]


def test_a_tie_is_for_integers(build):
    net = build("[one] y = Conv (x, w)", "float[8,8,3,3] w")
    steps = ({"x": 1e-6}, {"y": 1e-6})
    assert layers(placed(net, Times({"one": 5e-3}, {"one": 5.1e-3}, *steps))[0]) == ["one"]
    assert layers(placed(net, Times({"one": 5e-3}, {"one": 5.4e-3}, *steps))[0]) == []


def test_a_layer_that_lost_says_by_what(build):
    times = Times({"one": 0.02e-3}, {"one": 0.03e-3}, {"x": 0.004e-3}, {"y": 0.005e-3})
    placement, _ = placed(build("[one] y = Conv (x, w)", "float[8,8,3,3] w"), times)
    why = "slower in integers: 0.03 ms and 0.009 ms for the steps to and from them, against 0.02 ms in floats"
    assert [s.why for s in placement.skips] == [why]


def test_a_relu_counts_with_its_layer(build):
    times = Times({"one": 1e-3, "relu": 9e-3, "two": 5e-3}, {"one": 8e-3, "two": 1e-3}, {"x": 1e-6})
    placement, sizes = placed(build(CHAIN, WEIGHTS), times)
    assert layers(placement) == ["one", "two"]
    assert times.in_floats(placement.units[0], sizes) == pytest.approx(10e-3 * 1.03)


def test_dearer_integers(build):
    times = Times({"one": 5e-3}, {"one": 2e-3}, {"x": 1e-3}, {"y": 1e-3}).dearer(2)
    assert times == Times({"one": 5e-3}, {"one": 4e-3}, {"x": 2e-3}, {"y": 2e-3})


def test_layers_without_measured_floats_are_wanted_at_any_price(build):
    placement, sizes = placed(build(CHAIN, WEIGHTS), Times())
    assert Times().in_floats(placement.units[0], sizes) == inf
