"""Reading a model part by part gives what running it whole gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.core import stream
from onnxopt.core.context import Context
from onnxopt.core.stream import Stream
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model
from onnxopt.runtime.session import Session

Zoo = dict[str, Callable[[], onnx.ModelProto]]


def begin(proto: onnx.ModelProto, samples: int = 6) -> tuple[Model, Context, Stream]:
    model = Model.from_proto(proto)
    context = Context(model, open_dataset(None, model.inputs, samples=samples), batch=4)
    return model, context, Stream(model, stream.feeds(context, samples), context.shapes(model))


def whole(model: Model, context: Context, name: str) -> np.ndarray:
    session = Session(model, outputs=[name])
    return np.concatenate([session.run(feed)[name] for feed in context.dataset.batches(4)])


def test_every_tensor_on_the_way(zoo_model: onnx.ModelProto) -> None:
    model, context, flow = begin(zoo_model)
    names = [node.outputs[0].name for node in model.graph.nodes][::3]
    for name in names:
        assert flow.rest(name) == 1.0
        got = [value for (value,) in flow.read([name])]
        if got[0].ndim and len(got[0]) == 4:
            np.testing.assert_allclose(np.concatenate(got), whole(model, context, name), rtol=1e-4, atol=1e-5)


def test_it_keeps_only_what_is_still_to_be_read(zoo: Zoo) -> None:
    model, _, flow = begin(zoo["residual"]())
    second = model.graph.nodes[9].outputs[0].name
    flow.rest(second)
    assert sorted(flow._batches[0]) == [second]


def test_a_change_ahead_takes_effect_and_one_behind_does_not(zoo: Zoo) -> None:
    model, _, flow = begin(zoo["plain"]())
    middle, last = model.graph.nodes[2], model.graph.nodes[5]
    flow.rest(last.inputs[0].name)
    middle.inputs[1] = model.constant("w", middle.inputs[1].values * 0)
    unchanged = next(flow.read([last.inputs[0].name]))[0]
    assert unchanged.any()
    last.inputs[1] = model.constant("w", last.inputs[1].values * 0)
    assert np.ptp(next(flow.read([last.outputs[0].name]))[0], axis=(0, 2, 3)).max() == 0


def test_what_does_not_fit_is_read_from_further_back(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    model, context, flow = begin(zoo["plain"](), samples=40)
    early, late = model.graph.nodes[1].outputs[0].name, model.graph.nodes[7].outputs[0].name
    monkeypatch.setattr(stream, "_MEMORY", 40 * 4 * 40 * 4 * 4)
    share = flow.rest(early)
    assert 0 < share < 1
    assert not flow._done
    assert len(list(flow.read([early], share))) < 10
    assert flow.rest(late) == 1.0
    np.testing.assert_allclose(
        np.concatenate([v for (v,) in flow.read([late])]), whole(model, context, late), rtol=1e-5
    )


def test_feeds_that_do_not_fit_are_left_out(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.from_proto(zoo["plain"]())
    context = Context(model, open_dataset(None, model.inputs, samples=12), batch=4)
    assert [len(f["x"]) for f in stream.feeds(context, 10)] == [4, 4, 2]
    monkeypatch.setattr(stream, "_MEMORY", 5 * 3 * 8 * 8 * 4)
    assert [len(f["x"]) for f in stream.feeds(context, 10)] == [4]


def test_nodes_between(zoo: Zoo) -> None:
    model, _, flow = begin(zoo["plain"]())
    nodes = model.graph.nodes
    assert flow.passes(nodes[5].outputs[0].name, [nodes[2]])
    assert not flow.passes(nodes[1].outputs[0].name, [nodes[2]])
    flow.rest(nodes[2].outputs[0].name)
    assert not flow.passes(nodes[5].outputs[0].name, [nodes[2]])


def test_an_input_with_a_default_keeps_it(net: Any) -> None:
    n = net(4, 3, 8, 8)
    proto = n.model(n.relu(n.op("Mul", n.conv("x", 3, 4), n.constant(2.0))))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w2", onnx.TensorProto.FLOAT, []))
    model, context, flow = begin(proto)
    assert model.graph.defaults
    np.testing.assert_allclose(next(flow.read(["mul1"]))[0], whole(model, context, "mul1")[:4], rtol=1e-5)


def test_outputs_respond_to_other_values(zoo_model: onnx.ModelProto) -> None:
    model, context, flow = begin(zoo_model)
    session, output = Session(model), model.outputs[0].name
    wanted = [session.run(feed)[output] for feed in context.dataset.batches(4)]
    for node in model.graph.nodes[::4]:
        name = node.outputs[0].name
        assert flow.rest(name) == 1.0
        assert flow.rests(name)
        answers = flow.respond(name)
        values = [v for (v,) in flow.read([name])]
        for a, b in zip(wanted, answers(values), strict=True):
            np.testing.assert_allclose(a, b[output], rtol=1e-4, atol=1e-5)
        if values[0].ndim > 1:
            others = answers([np.asarray(v * np.float32(0.5) - 1) for v in values])
            assert any(not np.allclose(a, b[output]) for a, b in zip(wanted, others, strict=True))


def test_an_output_responds_with_itself(zoo: Zoo) -> None:
    model, _, flow = begin(zoo["plain"]())
    name = model.outputs[0].name
    flow.rest(name)
    other = [v + 1 for (v,) in flow.read([name])]
    for got, value in zip(flow.respond(name)(other), other, strict=True):
        assert list(got) == [name]
        assert (got[name] == value).all()


def test_only_outputs_still_to_be_made_respond(net: Any) -> None:
    n = net("N", 3, 8, 8)
    early = n.relu(n.conv("x", 3, 4))
    late = n.relu(n.conv(early, 4, 4))
    proto = n.model(late)
    proto.graph.output.append(onnx.helper.make_tensor_value_info(early, onnx.TensorProto.FLOAT, None))
    model, _, flow = begin(proto)
    hidden = model.graph.nodes[2].outputs[0].name
    flow.rest(early)
    assert set(next(flow.respond(early)([v for (v,) in flow.read([early])]))) == {early, late}
    flow.rest(hidden)
    assert set(next(flow.respond(hidden)([v for (v,) in flow.read([hidden])]))) == {late}


def test_few_batches_that_do_not_fit_are_read_whole_and_do_not_rest(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, flow = begin(zoo["plain"]())
    monkeypatch.setattr(stream, "_MEMORY", 100)
    name = model.graph.nodes[1].outputs[0].name
    assert flow.rest(name) == 1.0
    assert not flow.rests(name)
