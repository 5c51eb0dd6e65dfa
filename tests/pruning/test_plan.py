"""Budgets: met, hardly overshot, and kept to what may go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.core.context import Context
from onnxopt.core.pass_ import PassResult
from onnxopt.data.dataset import open_dataset
from onnxopt.errors import PassError
from onnxopt.graph.cost import cost
from onnxopt.graph.model import Model
from onnxopt.passes.prune import Prune
from onnxopt.runtime.target import NATIVE


def row(net: Any) -> onnx.ModelProto:
    """Convolutions of one pixel in a row, with pooling."""
    n = net()
    x = n.relu(n.conv("x", 3, 16, 1))
    x = n.op("MaxPool", n.relu(n.conv(x, 16, 32, 1)), kernel_shape=[2, 2], strides=[2, 2])
    proto: onnx.ModelProto = n.head(n.relu(n.conv(x, 32, 32, 1)), 32)
    return proto


def total(model: Model, context: Context) -> dict[str, int]:
    """By quantity of a budget."""
    found = cost(model, context.shapes(model)).total
    return {"macs": found.macs or 0, "params": found.parameters, "size": found.weight_bytes}


def cut(proto: onnx.ModelProto, **options: Any) -> tuple[PassResult, dict[str, int], dict[str, int]]:
    """The result, and what the model costs before and after."""
    original = Model.from_proto(proto)
    model, data = original.clone(), open_dataset(None, original.inputs, samples=32)
    context = Context(original, data, target=replace(NATIVE, channel_step=4), batch=8)
    result = Prune(repair=False, **options).run(model, context)
    model.tidy()
    return result, total(original, context), total(model, context)


def counts(result: PassResult) -> dict[str, list[int]]:
    return dict(result.figures.get("channels", {}))  # type: ignore[arg-type]  # a table by layer


def curve(result: PassResult) -> np.ndarray:
    return np.array(result.figures["curve"], np.float64)


def reasons(result: PassResult) -> dict[str, str]:
    return {skip.node: skip.why for skip in result.skips}


@pytest.mark.parametrize("criterion", ["obs", "l2"])
@pytest.mark.parametrize("quantity", ["macs", "params", "size"])
def test_a_share_is_met_and_hardly_overshot(quantity: str, criterion: str, net: Any) -> None:
    result, before, after = cut(row(net), criterion=criterion, **{quantity: "-40%"})
    share = after[quantity] / before[quantity]
    # One level, four channels of the widest layer and its two neighbours, is a twelfth of all.
    assert 0.5 < share <= 0.6
    way = curve(result)
    assert way[0].tolist() == [0, 0]
    assert way[-1, 0] >= 0.4
    assert way[-1, 0] == pytest.approx(1 - share, abs=5e-3)
    assert result.figures["budget"] == quantity
    assert way[-1, 1] > 0


@pytest.mark.parametrize(
    ("quantity", "text", "limit"),
    [("macs", "32K", 32e3), ("params", "1.2K", 1200), ("size", "5KB", 5000), ("size", "5000", 5000)],
)
def test_an_amount_is_met_and_hardly_overshot(quantity: str, text: str, limit: float, net: Any) -> None:
    _, before, after = cut(row(net), **{quantity: text})
    assert before[quantity] > limit
    assert 0.85 * limit < after[quantity] <= limit


def test_what_cannot_be_met_is_refused(net: Any) -> None:
    message = r"macs can be cut to \d+% at most, which is more than the budget allows; ask for less"
    with pytest.raises(PassError, match=message + ", or allow more: keep-ends=false, a smaller min-keep$"):
        cut(row(net), macs="-95%")
    more = ", or allow more: scope=all, a smaller align, fewer to exclude$"
    with pytest.raises(PassError, match=message + more):
        cut(row(net), macs="-99%", keep_ends=False, min_keep=0, align=8, scope="inner", exclude="Conv0")
    with pytest.raises(PassError, match=message + "$"):
        cut(row(net), macs="-99.9%", keep_ends=False, min_keep=0, align=1)
    cut(row(net), macs="-95%", keep_ends=False, min_keep=1)
    nothing = "params cannot be cut: no channel of this model can go; most of its weights: "
    with pytest.raises(PassError, match=nothing + "not included$"):
        cut(row(net), params="-1%", include="Gemm*")
    n = net()
    with pytest.raises(PassError, match=nothing + "its channels stay: 'conv0' is an output of the model$"):
        cut(n.model(n.conv("x", 3, 8)), params="-1%")


def test_what_is_not_counted_is_told(net: Any) -> None:
    n = net("N", 16)
    hidden = n.relu(n.dense(n.relu(n.dense("x", 16, 32)), 32, 32))
    y = n.op("Einsum", n.dense(hidden, 32, 4), equation="...j->...j")
    result, *_ = cut(n.model(y), macs="-10%", keep_ends=False)
    told = "MACs of 1 node cannot be counted (Einsum): the budget is of the others"
    assert told in list(result.figures["notes"])  # type: ignore[arg-type]  # a list of texts
    result, *_ = cut(n.model(y), params="-10%", keep_ends=False)
    assert "cannot be counted" not in str(result.figures.get("notes"))


def test_names_that_no_layer_has(net: Any) -> None:
    with pytest.raises(PassError, match=r"include names no layer: 'Conw2'; did you mean 'Conv2'"):
        cut(row(net), ratio=0.3, include="Conw2")
    result, *_ = cut(row(net), ratio=0.3, include="Conv2+Nope")
    assert list(counts(result)) == ["Conv2"]
    assert reasons(result)["Nope"].startswith("include names no node")


def test_a_model_with_nothing_to_save(net: Any) -> None:
    n = net()
    result, *_ = cut(n.model(n.relu("x")), macs="-30%")
    assert (result.changed, counts(result)) == (0, {})


def test_included_and_excluded_layers(net: Any) -> None:
    result, *_ = cut(row(net), macs="-20%", include="Conv2")
    assert list(counts(result)) == ["Conv2"]
    assert reasons(result)["Conv5"] == "not included"
    result, *_ = cut(row(net), macs="-20%", exclude="Conv2")
    assert list(counts(result)) == ["Conv5"]
    assert reasons(result)["Conv2"] == "excluded"


def test_ends_are_kept_with_a_budget(net: Any) -> None:
    result, *_ = cut(row(net), macs="-50%")
    assert reasons(result)["Conv0"] == "first or last layer; keep-ends=false prunes it"
    assert "Conv0" in counts(cut(row(net), macs="-80%", keep_ends=False)[0])


@pytest.mark.parametrize(("least", "fewest"), [(0.75, 24), (0.5, 16), (20.0, 20), (28.0, 28)])
def test_what_stays_at_least(least: float, fewest: int, net: Any) -> None:
    with pytest.raises(PassError, match="macs can be cut to") as caught:
        cut(row(net), macs="-90%", min_keep=least, criterion="l1")
    # As far as can be is as few as may stay.
    reached = int(str(caught.value).split("% at most")[0].split()[-1])
    whole, rest = 64 * 3 * 16 + 64 * 16 * 32 + 16 * 32 * 32 + 160, 64 * 3 * 16
    cheapest = rest + 64 * 16 * fewest + 16 * fewest**2 + 5 * fewest
    assert reached == round(100 * cheapest / whole)
    share = 100 - reached - 1
    found = counts(cut(row(net), macs=f"-{share}%", min_keep=least, criterion="l1")[0])
    assert {kept for _, kept in found.values()} == {fewest}


def test_one_thing_says_how_much_goes() -> None:
    with pytest.raises(ValueError, match="macs and ratio are given; one says how much goes"):
        Prune(macs="-30%", ratio=0.3)
    with pytest.raises(ValueError, match="params and size are given"):
        Prune(size="-30%", params="-30%")
    with pytest.raises(ValueError, match=r"macs is '30%'; write for example"):
        Prune(macs="30%")


def test_two_steps_end_where_one_does(net: Any) -> None:
    one, two = (counts(cut(row(net), ratio=0.5, align=4, steps=n)[0]) for n in (1, 2))
    assert one == two == {"Conv2": [32, 16], "Conv5": [32, 16]}


def test_two_steps_meet_a_budget_on_one_curve(net: Any) -> None:
    result, before, after = cut(row(net), macs="-40%", steps=2)
    assert 0.5 < after["macs"] / before["macs"] <= 0.6
    way = curve(result)
    assert way[0].tolist() == [0, 0]
    assert way[-1, 0] == pytest.approx(1 - after["macs"] / before["macs"])
    assert (way[:, 1] >= 0).all()


def test_layers_that_the_budget_spares(net: Any) -> None:
    result, *_ = cut(row(net), macs="-1%")
    assert len(counts(result)) == 1
    assert "the budget is met without it" in reasons(result).values()
    result, *_ = cut(row(net), macs="1G")
    assert counts(result) == {}
    assert reasons(result)["Conv5"] == "the budget is met without it"


def test_outputs_in_integers_leave_the_layers_own_errors(net: Any) -> None:
    """A wide layer whose channels are mixtures of few costs nothing, and so goes before the others."""
    n = net("N", 8)
    mixed = n.rng.standard_normal((32, 8)) @ np.diag([1, 1] + [0] * 6)
    x = n.op("Gemm", "x", n.constant(mixed), transB=1)
    x = n.relu(n.dense(n.dense(x, 32, 32), 32, 32))
    proto = n.model(n.dense(x, 32, 5))
    best = helper.make_node("ArgMax", [proto.graph.output[0].name], ["best"], axis=1)
    proto.graph.node.append(best)
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["N", 1]))
    result, *_ = cut(proto, macs="-20%", keep_ends=False)
    assert curve(result)[-1, 1] > 0


def test_a_latency_budget(net: Any) -> None:
    n = net("N", 3, 32, 32)
    proto = n.model(n.conv(n.relu(n.conv(n.relu(n.conv("x", 3, 32)), 32, 32)), 32, 4))
    result, *_ = cut(proto, latency="-10%", criterion="l1")
    way = curve(result)
    assert way[0].tolist() == [0, 0]
    assert way[-1, 0] >= 0.1 - 1e-9
    assert all(after < before for before, after in counts(result).values())
