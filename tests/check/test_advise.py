"""Advice: each pass on the whole model, and what it made of each layer alone."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from onnxopt.check import advise as module
from onnxopt.check import form
from onnxopt.check.advise import advise
from onnxopt.core import spec
from onnxopt.core.context import Context
from onnxopt.core.pass_ import Pass, PassResult, Skip, label, option
from onnxopt.data.dataset import Dataset, open_dataset
from onnxopt.graph.ir import Node, Variable
from onnxopt.graph.model import Model
from onnxopt.report.advice import Advice, Costs, Offer, Whole, verdict
from onnxopt.report.advice_text import render_advice
from onnxopt.report.json import write_advice


@dataclass(frozen=True, kw_only=True)
class Split(Pass):
    """Splits every square product into two of an eighth of the width."""

    name: ClassVar[str] = "split"
    width: int = option(16, "of what lies in between")

    def run(self, model: Model, context: Context) -> PassResult:
        nodes = [n for n in model.graph.nodes if n.op == "MatMul" and n.inputs[1].shape == (128, 128)]
        for node in nodes:
            u, s, v = np.linalg.svd(node.inputs[1].values)
            left, right = u[:, : self.width] * s[: self.width], v[: self.width]
            between = Variable(model.fresh_name("between"), np.float32)
            first = [node.inputs[0], model.constant("left", left.astype(np.float32))]
            model.graph.nodes.append(Node("MatMul", model.fresh_name("first"), first, [between]))
            node.inputs = [between, model.constant("right", right.astype(np.float32))]
        return PassResult(len(nodes))


@dataclass(frozen=True, kw_only=True)
class Spoil(Pass):
    """Turns the sign of all weights."""

    name: ClassVar[str] = "spoil"

    def run(self, model: Model, context: Context) -> PassResult:
        nodes = [n for n in model.graph.nodes if n.op == "MatMul"]
        for node in nodes:
            node.inputs[1] = model.constant("turned", -node.inputs[1].values)
        return PassResult(len(nodes))


@dataclass(frozen=True, kw_only=True)
class Idle(Pass):
    """Finds nothing."""

    name: ClassVar[str] = "idle"

    def run(self, model: Model, context: Context) -> PassResult:
        return PassResult(0, tuple(Skip(label(n), "it is asleep") for n in model.graph.nodes))


@dataclass(frozen=True, kw_only=True)
class Broken(Pass):
    """Does not work."""

    name: ClassVar[str] = "broken"

    def run(self, model: Model, context: Context) -> PassResult:
        raise IndexError("gone")


@pytest.fixture
def model(build: Callable[..., Model]) -> Model:
    """A layer of rank 16, one of full rank, and a small one."""
    made = build(
        "a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) y = MatMul(c, u)",
        "float[128,128] w, float[128,128] v, float[128,2] u",
        x="float[N,128] x",
    )
    (w,) = (c for c in made.constants() if c.name == "w")
    w.values = (w.values[:, :16] @ w.values[:16] / 16).astype(np.float32)
    return made


@pytest.fixture
def data(model: Model) -> Dataset:
    return open_dataset(None, model.inputs, samples=24)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets there be no passes but these and the exact ones."""

    def leave(*kinds: type[Pass]) -> None:
        exact = {name: kind for name, kind in spec.known_passes().items() if kind.exact}
        found = exact | {k.name: k for k in kinds}
        monkeypatch.setattr(spec, "known_passes", lambda: found)

    return leave


def look(model: Model, data: Dataset, **options: float) -> Advice:
    return advise(model, *data.split(), **options)  # type: ignore[arg-type]


def test_each_layer_alone(model: Model, data: Dataset, only: Callable[..., None]) -> None:
    only(Split)
    before = model.digest()
    found = look(model, data)
    assert model.digest() == before
    exact, damaged = sorted(found.offers, key=lambda o: o.layer)  # their own order goes by time
    assert [(o.layer, o.op, o.spec) for o in (exact, damaged)] == [("a", "MatMul", "split"), ("c", "MatMul", "split")]
    for offer in found.offers:
        assert offer.saved_bytes == 4 * (128 * 128 - 2 * 128 * 16)
        assert (offer.before.macs, offer.after.macs) == (128 * 128, 2 * 128 * 16)
    assert exact.sqnr_db > 100  # its rank is no more than what is left
    assert exact.verdict in ("pays", "smaller, slower")  # microseconds decide which
    assert 0 < damaged.sqnr_db < 10
    assert damaged.verdict == "harms"
    (whole,) = found.passes
    assert (whole.pieces, whole.tried) == (2, 2)
    assert whole.sqnr_db == pytest.approx(damaged.sqnr_db, abs=0.5)
    assert whole.before is not None
    assert whole.after is not None
    assert whole.before.bytes == 4 * (2 * 128 * 128 + 128 * 2)
    assert whole.before.bytes - whole.after.bytes == 2 * exact.saved_bytes
    assert whole.before.macs == 2 * 128 * 128 + 256
    assert whole.speedup is not None
    assert whole.speedup[1] <= whole.speedup[0] <= whole.speedup[2]


def test_small_layers_are_tried_together(model: Model, build, only: Callable[..., None]) -> None:
    only(Spoil)
    assert sorted(o.layer for o in look(model, open_dataset(None, model.inputs, samples=8)).offers) == ["a", "c", "y"]
    nodes = "a = MatMul(x, w) b = MatMul(a, s) c = MatMul(b, t) y = MatMul(c, u)"
    more = build(nodes, "float[128,128] w, float[128,2] s, float[2,2] t, float[2,2] u", x="float[N,128] x")
    offers = sorted(look(more, open_dataset(None, more.inputs, samples=8)).offers, key=lambda o: o.layer)
    assert [o.layer for o in offers] == ["a", "b", "the rest (2)"]  # their own order goes by time
    assert [o.verdict for o in offers] == ["harms", "harms", "no gain"]
    assert offers[0].sqnr_db == pytest.approx(10 * math.log10(1 / 4), abs=1e-3)  # the sign of the outputs
    assert offers[2].sqnr_db > 100  # turned twice


def test_a_node_of_several_outputs_is_offered_once(build, only: Callable[..., None]) -> None:
    """Tensors that nothing reads are no places to put something: there it would change nothing, and seem to pay."""
    only(spec.known_passes()["quant-dynamic"])
    nodes = "s, h, c = LSTM<hidden_size=64>(x, w, r) i = Constant<value_ints=[1]>() y = Squeeze(s, i)"
    model = build(nodes, "float[1,256,64] w, float[1,256,64] r", x="float[12,N,64] x")
    found = look(model, open_dataset(None, model.inputs, samples=8))
    (offer,) = found.offers
    assert (offer.layer, offer.op) == ("s", "LSTM")
    assert offer.saved_bytes > 0.7 * offer.before.bytes
    assert 20 < offer.sqnr_db < 60


def test_times_of_layers_add_up_to_what_was_timed_in_turns(
    model: Model, data: Dataset, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is a hundred times slower while the second form is profiled makes no layer slower."""
    only(Split)
    measured = form.profile
    calls: list[Any] = []

    def profile(*given: Any, **options: Any) -> Any:
        found = measured(*given, **options)
        calls.append(found)
        pace = 100 ** (len(calls) - 1)
        return replace(found, nodes={k: v * pace for k, v in found.nodes.items()}, total=found.total * pace)

    monkeypatch.setattr(form, "profile", profile)
    found = look(model, data)
    assert len(calls) == 2
    for offer in found.offers:
        assert offer.before.ms is not None
        assert offer.after.ms is not None
        assert offer.after.ms < 20 * offer.before.ms


def test_other_numbers_take_the_same_time(model: Model, data: Dataset, only: Callable[..., None]) -> None:
    """What changes weights, or stores them otherwise, leaves what runs as it is; decoding is run."""
    cluster, weights = (spec.known_passes()[name] for name in ("cluster", "quant-weights"))
    only(Spoil, cluster, weights)
    found = look(model, data)
    same = [o for o in found.offers if not o.spec.startswith("quant-weights")]
    assert {o.spec for o in same} == {"spoil", "cluster", "cluster:levels=256"}
    assert all(o.before.ms == o.after.ms for o in same)
    assert all(o.before.ms != o.after.ms for o in found.offers if o not in same)


def test_what_does_not_work_says_why(model: Model, data: Dataset, only: Callable[..., None]) -> None:
    only(Idle, Broken)
    found = look(model, data)
    assert found.offers == ()
    broken, idle = found.passes
    assert broken.why.startswith("the pass broken failed at test_advise.py")
    assert idle.why == "it is asleep"
    assert len(idle.skips) == 4
    assert [p.verdict for p in found.passes] == ["nothing to do"] * 2


def test_without_time_the_largest_layer_is_tried(
    model: Model, data: Dataset, only: Callable[..., None], tmp_path
) -> None:
    only(Split, Spoil)
    found = look(model, data, budget_s=0.0)
    assert sorted(o.spec for o in found.offers) == ["split", "spoil"]
    (note,) = (n for n in found.notes if "within 0 s" in n)
    assert note == "not tried alone within 0 s, the smallest layers of each pass: split on 1 of 2, spoil on 2 of 3"
    write_advice(found, tmp_path / "advice.json")
    written = json.loads((tmp_path / "advice.json").read_text())
    assert written["schema"] == "onnxopt-advice-1"
    assert [o["verdict"] for o in written["offers"]] == [o.verdict for o in found.offers]
    assert set(written["offers"][0]) == {"layer", "op", "spec", "before", "after", "sqnr_db", "verdict"}


def test_pruning_runs_for_each_group(zoo, only: Callable[..., None]) -> None:
    only(spec.known_passes()["prune"])
    model = Model.from_proto(zoo["plain"]())
    data = open_dataset(None, model.inputs, samples=16)
    found = look(model, data)
    (whole,) = found.passes
    assert whole.tried == whole.pieces == len(found.offers) == 2  # the first and the last layer stay
    for offer in found.offers:
        assert offer.before.macs is not None
        assert offer.after.macs is not None
        assert offer.before.macs > offer.after.macs
        assert offer.saved_bytes > 0


def test_every_pass_is_tried_with_settings_it_has() -> None:
    lossy = [name for name, kind in spec.known_passes().items() if not kind.exact]
    assert set(module._TRIED) <= set(lossy)
    assert all(list(module._settings(name)) for name in lossy)
    assert not list(module._settings("fold-bn"))
    assert [name for name, _ in module._settings("cluster")] == ["cluster", "cluster:levels=256"]
    ((name, step),) = module._settings("quant")
    assert (name, str(step)) == ("quant", "quant:effort=fast:measure=false")


def costs(size: int, packed: int, ms: float | None = 1.0) -> Costs:
    return Costs(size, packed, None, ms)


@pytest.mark.parametrize(
    ("after", "db", "pace", "expected"),
    [
        (costs(50, 90), 30.0, 0, "pays"),
        (costs(100, 100), 30.0, 1, "pays"),
        (costs(50, 90), 30.0, -1, "smaller, slower"),
        (costs(150, 90), 30.0, 1, "quicker, larger"),
        (costs(150, 90), 30.0, 0, "larger"),
        (costs(100, 50), 30.0, -1, "slower"),
        (costs(100, 50), 30.0, 0, "smaller packed"),
        (costs(99, 99), 30.0, 0, "no gain"),
        (costs(50, 50), 9.9, 1, "harms"),
        (costs(50, 50), math.nan, 1, "harms"),
    ],
)
def test_verdicts(after: Costs, db: float, pace: int, expected: str) -> None:
    assert verdict(costs(100, 100), after, db, pace) == expected


@pytest.mark.parametrize(
    ("speedup", "pace"), [((1.2, 1.1, 1.3), 1), ((1.2, 0.9, 1.5), 0), ((0.98, 0.9, 1.1), 0), ((0.66, 0.1, 2.4), -1)]
)
def test_a_pass_that_may_be_slower_does_not_pay(speedup: tuple[float, float, float], pace: int) -> None:
    found = Whole("p", "", costs(100, 100), costs(50, 50), 30.0, speedup)
    assert found.pace == pace
    assert found.verdict == ("smaller, slower" if pace < 0 else "pays")


@pytest.mark.parametrize(("ms", "pace"), [(0.9, 1), (1.0, 0), (1.04, 0), (1.1, -1), (None, 0)])
def test_the_clock_scatters(ms: float | None, pace: int) -> None:
    assert Offer("a", "MatMul", "p", costs(9, 9), costs(9, 9, ms), 30.0).pace == pace


def test_as_text() -> None:
    from rich.console import Console

    def lines(found: Advice, width: int = 200, *, verbose: bool = False) -> list[str]:
        console = Console(width=width, file=io.StringIO())
        with console.capture() as captured:
            console.print(render_advice(found, verbose=verbose))
        return [" ".join(line.split()) for line in captured.get().splitlines()]

    good = Offer("first", "Conv", "svd", Costs(4000, 9000, 500, 1.0), Costs(2000, 7000, 250, 0.5), 41.23)
    bad = Offer("last", "Gemm", "svd", Costs(4000, 9000, 500, 1.0), Costs(4100, 9100, None, 1.01), 41.23)
    whole = Whole("svd", "", good.before, good.after, 30.0, (1.5, 1.4, 1.6))
    text = lines(Advice("m.onnx", {}, {}, 7, (good, bad), (whole, Whole("quant", "it is asleep")), ("told",)))
    assert "first Conv svd -2.00 kB -250 -500 us 41.2 dB pays" in text
    assert "last Gemm svd +100 bytes ? 41.2 dB larger" in text
    assert "svd -2.00 kB -2.00 kB -250 -500 us 1.50 x 30.0 dB pays" in text
    assert "quant: nothing to gain: it is asleep" in text
    assert "note: told" in text
    # Each pass in turn, unless all are shown.
    alike = [
        replace(good, layer=name, spec=spec) for name, spec in zip("abcd", ("svd", "svd", "svd", "quant"), strict=True)
    ]
    for verbose, order in ((False, "adbc"), (True, "abcd")):
        shown = lines(Advice("m.onnx", {}, {}, 7, tuple(alike), ()), verbose=verbose)
        assert [line[0] for line in shown if "41.2 dB" in line] == list(order)
    # An operator that the name tells, and what nothing changes, take no column; at 80 columns no number is broken.
    names = [f"/encoder/layers.{i}/self_attention/query/MatMul" for i in range(2)]
    costs = Costs(1_000_000, 9000, 500, 1.0), Costs(890_000, 7000, 500, 0.99369)
    slow = costs[0], Costs(10, 10, 500, 1.5)
    offers = [Offer(n, "MatMul", "quant-weights:bits=8", *c, 41.23) for n, c in zip(names, (costs, slow), strict=True)]
    narrow = lines(Advice("m.onnx", {}, {}, 7, tuple(offers), ()), 80)
    assert sum("-110 kB 41.2 dB pays" in line for line in narrow) == 1
    assert sum("-1.00 MB +500 us 41.2 dB smaller," in line for line in narrow) == 1
    assert not any("operator" in line or "MACs" in line for line in narrow)
    assert text[-1] == "on the whole model as it is, 7 samples judging, it pays to run: svd"
