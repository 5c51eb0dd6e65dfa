"""Order, preparation, verification, and what happens when a pass goes wrong."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxopt.core import spec
from onnxopt.core.manager import PassManager, plan
from onnxopt.core.pass_ import Pass, PassResult, Skip
from onnxopt.errors import PassError, SpecError
from onnxopt.graph.ir import Variable
from onnxopt.graph.model import Model


@dataclass(frozen=True, kw_only=True)
class First(Pass):
    """Does nothing, exactly."""

    name: ClassVar[str] = "first"
    exact: ClassVar[bool] = True

    def run(self, model, context) -> PassResult:
        return PassResult(0, (Skip("n", "nothing to do"),), {"seen": context.dataset.count})


@dataclass(frozen=True, kw_only=True)
class Idle(Pass):
    """Leaves places alone, for reasons of choice."""

    name: ClassVar[str] = "idle"
    left: tuple[tuple[str, str], ...] = ()

    def run(self, model, context) -> PassResult:
        return PassResult(0, tuple(Skip(*place) for place in self.left))


@dataclass(frozen=True, kw_only=True)
class Second(First):
    """Needs the first."""

    name: ClassVar[str] = "second"
    prepare: ClassVar[tuple[str, ...]] = ("first",)


@dataclass(frozen=True, kw_only=True)
class Third(First):
    """Comes after the second, if that is there."""

    name: ClassVar[str] = "third"
    after: ClassVar[tuple[str, ...]] = ("second",)
    prepare: ClassVar[tuple[str, ...]] = ("second",)


@dataclass(frozen=True, kw_only=True)
class Loop(First):
    """Comes after the third and before it."""

    name: ClassVar[str] = "loop"
    after: ClassVar[tuple[str, ...]] = ("loop2",)


@dataclass(frozen=True, kw_only=True)
class Loop2(First):
    """The other half."""

    name: ClassVar[str] = "loop2"
    after: ClassVar[tuple[str, ...]] = ("loop",)


@dataclass(frozen=True, kw_only=True)
class Break(Pass):
    """Breaks the graph, in a way of choice."""

    name: ClassVar[str] = "break"
    exact: ClassVar[bool] = True
    how: str = "dangling"

    def run(self, model, context) -> PassResult:
        relu = model.graph.nodes[0]
        if self.how == "dangling":
            relu.inputs[0] = Variable("ghost")
        elif self.how == "values":
            model.graph.nodes[1].inputs[1] = model.constant("w2", np.ones(4, np.float32) * 2)
        elif self.how == "exception":
            raise KeyError("deep inside")
        elif self.how == "boundary":
            model.graph.outputs[0].name = "renamed"
        return PassResult(1)


@pytest.fixture(autouse=True)
def known(monkeypatch) -> None:
    passes = {t.name: t for t in (First, Second, Third, Loop, Loop2, Break)}
    monkeypatch.setattr(spec, "known_passes", lambda: passes)


@pytest.fixture
def model() -> Model:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Add(a, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    return Model.from_proto(proto)


def names(planned) -> list[str]:
    return [p.name for p in planned.steps]


def test_what_a_pass_needs_is_put_before_it() -> None:
    planned = plan([Third()])
    assert names(planned) == ["first", "second", "third"]
    assert planned.notes == (
        "added first, needed first by third",
        "added second, needed first by third",
    )


def test_the_order_is_mended_and_said() -> None:
    planned = plan([Third(), Second(), First()])
    assert names(planned) == ["first", "second", "third"]
    assert planned.notes == ("order changed from third,second,first to first,second,third: --keep-order keeps yours",)


def test_the_users_order_can_be_kept() -> None:
    planned = plan([Third(), Second(), First()], keep_order=True)
    assert names(planned) == ["third", "second", "first"]
    assert planned.notes == ()


def test_stop_after() -> None:
    planned = plan([First(), Second(), Third()], stop_after=2)
    assert names(planned) == ["first", "second"]
    assert planned.notes == ("stopped after step 2 of 3; not run: third",)


@pytest.mark.parametrize(
    ("passes", "message"),
    [([First(), First()], "'first' is named twice"), ([Loop(), Loop2()], "each ask to run after another")],
)
def test_plans_that_cannot_be(passes, message) -> None:
    with pytest.raises(SpecError, match=message):
        plan(passes)


def test_a_run_reports_each_step(model) -> None:
    report = PassManager([First(), Second()], check_each=True).run(model)
    assert [s.spec for s in report.passes] == ["first", "second"]
    step = report.passes[0]
    assert step.changed == 0
    assert step.skips == (("n", "nothing to do"),)
    assert step.figures["seen"] > 0
    assert step.figures["check"] == {"y": 0.0}
    assert any("SYNTHETIC" in note for note in report.notes)


@pytest.mark.parametrize(
    ("left", "why"),
    [
        ((("a", "too small"), ("model", "slower as a whole")), "slower as a whole"),
        ((("model", "slower"), ("model", "slower still"), ("model", "slower")), "slower; slower still"),
        ((("a", "too small"), ("b", "too small")), "too small"),
        ((("a", "odd"), ("b", "too small"), ("c", "too small")), "too small (2 of 3 places left alone)"),
        ((), "it found no place for it"),
    ],
)
def test_a_lossy_pass_that_changes_nothing_says_why(left, why, model) -> None:
    notes = PassManager([First(), Idle(left=left)]).run(model).notes
    assert notes[-1].startswith("idle")
    assert notes[-1].endswith(f" changed nothing: {why}")
    assert not any(note.startswith("first") for note in notes)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("dangling", "the pass break:how=dangling left a broken graph: .*'ghost', which nothing makes"),
        ("boundary", "left a broken graph: the outputs changed from y"),
        ("exception", r"failed at test_manager.py:\d+ \(KeyError: 'deep inside'\); leave it out"),
    ],
)
def test_a_pass_that_goes_wrong_is_named(how: str, message: str, model) -> None:
    with pytest.raises(PassError, match=message.replace(":how=dangling", "")) as caught:
        PassManager([Break(how=how)]).run(model)
    assert caught.value.exit_code == 1


def test_an_exact_pass_that_changes_results_is_caught(model) -> None:
    with pytest.raises(PassError, match="the exact pass break:how=values changed the output 'y' by"):
        PassManager([Break(how="values")], check_each=True).run(model)


def test_faults_of_the_original_are_noted_not_blamed_on_a_pass(model) -> None:
    model.graph.name = ""
    report = PassManager([First()]).run(model)
    assert any("the original is not valid ONNX" in note for note in report.notes)


def test_sequences_are_not_compared(model) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (seq(float[K,4]) s, float[N,4] y) {
            parts = Constant <value = int64[1] {1}> ()
            s = SplitToSequence <axis = 0> (x, parts)
            y = Relu(x)
        }"""
    )
    report = PassManager([First()], check_each=True).run(Model.from_proto(proto))
    assert report.passes[0].figures["check"] == {"y": 0.0}
