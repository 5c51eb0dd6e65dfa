"""What every pass is held to, and a short way to write the models that tests need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Pass, PassResult
from onnxopt.core.reasons import code
from onnxopt.data.batching import Batching
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array, Feed, TensorSpec
from onnxopt.graph.verify import boundary, faults
from onnxopt.numerics.tolerance import allowed, deviation
from onnxopt.runtime.session import Session


@dataclass(frozen=True)
class Outcome:
    """What a pass made of a model, and what both models answered to the same feed."""

    model: Model
    result: PassResult
    feed: Feed
    before: dict[str, Array]
    after: dict[str, Array]

    @property
    def reasons(self) -> list[str]:
        """Why places were skipped."""
        return [skip.why for skip in self.result.skips]

    @property
    def ops(self) -> list[str]:
        """Operators of all graphs, sorted."""
        return sorted(node.op for node in self.model.nodes())

    def constant(self, name: str) -> Array:
        """The value of a constant by name."""
        return next(np.asarray(c.values) for c in self.model.constants() if c.name == name)

    def deviation(self) -> float:
        """The largest deviation of any output, relative to its largest magnitude."""
        return max(deviation(value, self.after[name]) for name, value in self.before.items())


class OneFeed:
    """A dataset of one batch, as passes may ask their context for."""

    source = "test"
    labels = None
    synthetic = False
    notes = ()

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.count = max((len(value) for value in feed.values() if value.ndim), default=1)
        self.digest = "0" * 64
        self.unit = self.count
        self.batching = Batching(whole=False, fixed=self.count)

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Feed]:
        yield self.feed


@pytest.fixture(scope="session")
def parse() -> Callable[..., onnx.ModelProto]:
    return _parse


@pytest.fixture(scope="session")
def check_pass() -> Callable[..., Outcome]:
    return _check_pass


def _parse(text: str, opset: int = 17, seed: int = 0, **values: Any) -> onnx.ModelProto:
    """A model from the text of its graph in ONNX's own notation.

    Tensors that the text declares in ``<...>`` and that no node makes become weights: those given in ``values``, the
    others drawn from a normal distribution with the seed. Outputs ``float[]`` get their real type and shape.
    """
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    proto = onnx.parser.parse_model(text if text.lstrip().startswith("<") else header + text)
    graph, rng = proto.graph, np.random.default_rng(seed)
    made = {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer}
    weights = [v for v in graph.value_info if v.name not in made]
    for value in weights:
        graph.value_info.remove(value)
        tensor = value.type.tensor_type
        shape = [d.dim_value for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        array = np.broadcast_to(values.get(value.name, rng.standard_normal(shape)), shape).astype(dtype)
        graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    for value in graph.output:
        if not value.type.tensor_type.HasField("shape"):
            value.ClearField("type")
    inferred = {v.name: v for v in onnx.shape_inference.infer_shapes(proto).graph.output}
    for value in graph.output:
        value.CopyFrom(inferred[value.name])
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _feed(inputs: Sequence[TensorSpec], size: int, seed: int) -> Feed:
    """Seeded values of the right types; free dimensions become ``size``."""
    rng = np.random.default_rng(seed)
    feed = {}
    for spec in inputs:
        shape = [d if isinstance(d, int) else size for d in spec.shape or ()]
        if np.issubdtype(spec.dtype, np.floating):
            feed[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            feed[spec.name] = rng.integers(0, 2, shape).astype(spec.dtype)
    return feed


def _check_pass(
    step: Pass,
    before: onnx.ModelProto,
    *,
    ops: str | None = None,
    changed: int | None = None,
    skipped: Sequence[str] | None = (),
    feed: Feed | None = None,
    size: int = 3,
    numbers: bool | None = None,
) -> Outcome:
    """Run a pass and hold it to what all passes promise: a whole graph, the same boundary, an untouched input, nothing
    left to do for a second run, a code for every reason, and, of an exact pass, the same numbers with ONNX Runtime's
    own rewrites off.

    ``ops`` are the operators expected afterwards, in any order, with spaces between; ``changed`` how many places;
    ``skipped`` a piece of the reason of each skip (None: any). ``numbers`` False compares none of an exact pass.
    """
    original = Model.from_proto(before)
    untouched = original.to_proto().SerializeToString(deterministic=True)
    model = original.clone()
    feed = _feed(original.inputs, size, seed=1) if feed is None else feed
    context = Context(original, OneFeed(feed))  # type: ignore[arg-type]  # all that a pass asks of a dataset
    expected = boundary(model)

    result = step.run(model, context)
    assert [s for s in result.skips if code(s.why) == "other"] == [] or step.exact
    model.tidy()
    assert faults(model, expected) == []
    assert original.to_proto().SerializeToString(deterministic=True) == untouched
    after = model.to_proto()
    onnx.checker.check_model(after, full_check=True)

    again = model.clone()
    second = step.run(again, context)
    again.tidy()
    assert second.changed == 0
    assert again.to_proto().SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)

    outcome = Outcome(
        model, result, feed, Session(original, optimize=False).run(feed), Session(model, optimize=False).run(feed)
    )
    if numbers is not False and step.exact:
        for name, value in outcome.before.items():
            assert deviation(value, outcome.after[name]) <= allowed(value.dtype), name
    if ops is not None:
        assert outcome.ops == sorted(ops.split())
    if changed is not None:
        assert result.changed == changed
    assert skipped is None or len(result.skips) == len(skipped), outcome.reasons
    for piece in skipped or ():
        assert any(piece in why for why in outcome.reasons), outcome.reasons
    return outcome
