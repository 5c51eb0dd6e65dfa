"""Inspection: what is in a model, and each pass tried on a copy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx.parser
import pytest

from onnxopt.check import inspect as module
from onnxopt.check.inspect import inspect
from onnxopt.core.context import Context
from onnxopt.core.pass_ import Pass, PassResult, Skip, option
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model
from onnxopt.report.cut import Stays


@dataclass(frozen=True, kw_only=True)
class Rename(Pass):
    """Renames every Relu, and leaves the others alone."""

    name: ClassVar[str] = "rename"
    exact: ClassVar[bool] = True
    seen: ClassVar[list[int]] = []
    suffix: str = option("_new", "what to append")

    def run(self, model: Model, context: Context) -> PassResult:
        self.seen.append(context.dataset.count)
        nodes = list(model.nodes())
        for node in nodes:
            if node.op == "Relu":
                node.name += self.suffix
        return PassResult(
            sum(n.op == "Relu" for n in nodes), tuple(Skip(n.name, "no Relu") for n in nodes if n.op != "Relu")
        )


@dataclass(frozen=True, kw_only=True)
class Broken(Pass):
    """Does not work."""

    name: ClassVar[str] = "broken"

    def run(self, model: Model, context: Context) -> PassResult:
        raise IndexError("gone")


@dataclass(frozen=True, kw_only=True)
class Demanding(Pass):
    """Cannot be tried without being told more."""

    name: ClassVar[str] = "demanding"
    path: str = field()

    def run(self, model: Model, context: Context) -> PassResult:
        raise AssertionError


@pytest.fixture(autouse=True)
def _passes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {t.name: t for t in (Broken, Demanding, Rename)}
    monkeypatch.setattr(module, "known_passes", lambda: found)
    Rename.seen.clear()


def model(batch: str = "N") -> Model:
    text = f"""<ir_version: 9, opset_import: ["" : 17], producer_name: "maker", producer_version: "1">
      g (float[{batch},4] x) => (float[{batch},4] y) <float[4,4] w = {{{",".join(["1"] * 16)}}}>
      {{ [first] a = MatMul (x, w)  [second] y = Relu (a) }}"""
    return Model.from_proto(onnx.parser.parse_model(text))


def test_an_inspection() -> None:
    subject = model()
    before = subject.to_proto()
    found = inspect(subject, open_dataset("synthetic", subject.inputs, samples=20))
    assert (found.producer, found.opsets) == ("maker 1", {"ai.onnx": 17})
    assert (found.inputs, found.outputs) == (("x: float32[N,4]",), ("y: float32[N,4]",))
    assert (found.total.parameters, found.total.macs, found.total.count) == (16, 16, 2)
    assert [o.op for o in found.operators] == ["MatMul", "Relu"]
    broken, rename = found.passes
    assert (rename.spec, rename.exact, rename.changed, rename.skips) == ("rename", True, 1, (("first", "no Relu"),))
    assert broken.changed == 0
    assert "the pass broken failed at " in broken.failed
    assert "(IndexError: gone)" in broken.failed
    assert Rename.seen == [8]  # few samples are enough
    assert subject.to_proto() == before


def test_batches_that_the_graph_fixes() -> None:
    subject = model("12")
    inspect(subject, open_dataset("synthetic", subject.inputs, samples=24))
    assert Rename.seen == [12]


def test_few_samples() -> None:
    subject = model()
    data = open_dataset("synthetic", subject.inputs, samples=24).subset(np.arange(3))
    inspect(subject, data)
    assert Rename.seen == [3]


def test_coupling_tries_no_pass_and_sees_what_is_in_local_functions() -> None:
    text = f"""<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
      g (float[N,4] x) => (float[N,2] y) <float[4,6] v = {{{",".join(["1"] * 24)}}}, float[6,2] w = {{{"1,2," * 5}1,2}}>
      {{ a = own.Bent (x, v)  [second] y = MatMul (a, w) }}
      <domain: "own", opset_import: ["" : 17]>
      Bent (x, w) => (y) {{ [inner] z = MatMul (x, w)  y = Relu (z) }}"""
    subject = Model.from_proto(onnx.parser.parse_model(text))
    before = subject.to_proto()
    found = inspect(subject, open_dataset("synthetic", subject.inputs), coupling=True)
    assert (found.passes, Rename.seen) == ((), [])
    assert found.coupling is not None
    first, last = found.coupling.groups
    assert (len(first.makers), first.readers, first.channels, first.classes) == (1, ("second",), 6, 6)
    assert (last.makers, last.classes, last.why) == (("second",), 0, "'y' is an output of the model")
    assert found.coupling.frozen == (Stays("'y' is an output of the model", ("second",), 12),)
    assert subject.to_proto() == before
    assert inspect(subject, open_dataset("synthetic", subject.inputs)).coupling is None
