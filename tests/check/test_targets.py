"""Targets judged: what passes, what fails and why, what is not checked, and how many samples each gets."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.check import clock, sampling, targets
from onnxopt.check.clock import too_slow
from onnxopt.check.gates import Gates, on_all
from onnxopt.check.parity import apart, estimate, grown, is_coarse
from onnxopt.check.quality import Quality
from onnxopt.check.sampling import affordable, draw
from onnxopt.check.targets import default_targets, on_targets
from onnxopt.check.validate import validate
from onnxopt.core.manager import PassManager
from onnxopt.core.spec import parse
from onnxopt.data.dataset import Dataset, from_feeds
from onnxopt.errors import ExecutionError, TargetError
from onnxopt.graph.io import load, save
from onnxopt.graph.signature import TensorSpec
from onnxopt.job import RunOptions, optimize
from onnxopt.report.report import TargetResult
from onnxopt.runtime.exchange import Answer, Job
from onnxopt.runtime.probe import saturates
from onnxopt.runtime.target import NATIVE, X86_AVX2, X86_AVX512_VNNI, Target
from onnxopt.runtime.timing import Timing
from onnxopt.targets.counting import Counter
from onnxopt.targets.emulated import Emulated
from onnxopt.targets.find import find_way
from onnxopt.targets.native import Native
from onnxopt.targets.spec import Wanted, parse_targets
from onnxopt.targets.way import Unavailable

INPUTS, CLASSES = 64, 10
ANY_SPEED = Gates(min_speedup=0)


class Nets(NamedTuple):
    """A classifier in floats, in integers that overflow in pairs, and in such as do not."""

    floats: Path
    full: Path
    guarded: Path
    data: Dataset


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Nets:
    rng = np.random.default_rng(0)
    weights = rng.uniform(-1, 1, (INPUTS, CLASSES)).astype(np.float32)
    folder = tmp_path_factory.mktemp("nets")
    feeds = [{"x": rng.uniform(0, 1, (1, INPUTS)).astype(np.float32)} for _ in range(60)]
    data = from_feeds(feeds, [TensorSpec("x", np.dtype(np.float32), ("N", INPUTS))])
    files = [write(folder / f"{largest}.onnx", weights, largest) for largest in (None, 127, 63)]
    return Nets(files[0], files[1], files[2], data)


def write(path: Path, weights: np.ndarray, largest: int | None) -> Path:
    """A matrix product; quantized if the largest weight is to be a whole number."""
    nodes, constants, w = [], {}, "w"
    if largest is None:
        constants["w"] = weights
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")]
    else:
        step = np.float32(1 / largest)
        constants = {
            "w": np.rint(weights / step).astype(np.int8), "ws": step, "wz": np.int8(0),
            "s": np.float32(1 / 255), "z": np.uint8(0), "ys": np.float32(16 / 255), "yz": np.uint8(128),
        }  # fmt: skip
        for op, i, o in (
            ("QuantizeLinear", ["x", "s", "z"], "xq"), ("DequantizeLinear", ["xq", "s", "z"], "xd"),
            ("DequantizeLinear", [w, "ws", "wz"], "wd"), ("MatMul", ["xd", "wd"], "m"),
            ("QuantizeLinear", ["m", "ys", "yz"], "mq"), ("DequantizeLinear", ["mq", "ys", "yz"], "y"),
        ):  # fmt: skip
            nodes.append(helper.make_node(op, i, [o], name="dense" if op == "MatMul" else f"to_{o}"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def runnable(text: str) -> tuple[Wanted, ...]:
    wanted = parse_targets(text)
    for w in wanted:
        if isinstance(way := find_way(w), Unavailable):
            pytest.skip(f"{w.name}: {way}")
    return wanted


def judged(nets: Nets, candidate: Path, wanted: tuple[Wanted, ...], gates: Gates = ANY_SPEED) -> list[TargetResult]:
    return list(on_targets(nets.floats, candidate, nets.data, wanted, gates))


def test_integers_that_overflow_fail_without_vnni_and_say_why(nets: Nets) -> None:
    if saturates(NATIVE):
        pytest.skip("this processor has no VNNI, so nothing differs")
    (found,) = judged(nets, nets.full, runnable("x86-64-avx2"))
    assert found.status == "failed"
    assert found.why.startswith("the error is ")
    assert "times the energy of here" in found.why
    assert found.sqnr_db is not None
    assert found.native_sqnr_db is not None
    assert found.sqnr_db < found.native_sqnr_db - 6
    assert found.parity_db is not None
    assert found.parity_db < 40
    assert found.departure is not None
    assert "'dense'" in found.departure
    assert [cause.name for cause in found.causes] == ["16-bit saturation"]
    assert found.causes[0].remedies
    assert found.samples == nets.data.count


def test_weights_of_seven_bits_pass(nets: Nets) -> None:
    (found,) = judged(nets, nets.guarded, runnable("x86-64-avx2"))
    assert (found.status, found.why) == ("passed", "")
    assert found.parity_db == math.inf
    assert (found.parity_error, found.parity_agreement) == (0.0, 1.0)
    assert found.sqnr_db == found.native_sqnr_db
    assert found.latency_ms is not None
    assert found.speedup_low is not None
    assert found.speedup is not None
    assert found.speedup_high is not None
    assert found.speedup_low <= found.speedup <= found.speedup_high
    assert found.how.startswith("natively, ")
    assert found.seconds > 0


def test_floats_pass_everywhere(nets: Nets) -> None:
    for found in judged(nets, nets.floats, runnable("x86-64-avx2,x86-64-sse42")):
        assert (found.status, found.why) == ("passed", "")
        assert found.parity_db is not None
        assert found.parity_db > 120


def test_an_emulated_processor_is_judged_but_not_timed(nets: Nets, arm64: Path) -> None:
    (found,) = judged(nets, nets.full, parse_targets("arm64-cortex-a53"), Gates())
    assert (found.status, found.why) == ("passed", "")
    assert found.samples == nets.data.count
    assert found.parity_db == math.inf
    assert (found.latency_ms, found.speedup) == (None, None)


def test_the_default_is_what_can_be_run_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = [w.name for w in default_targets()]
    assert names[0] == "native"
    assert set(names) <= {"native", "x86-64-avx2", "x86-64-avx512"}


@dataclass(frozen=True)
class Slow:
    """A way that says it is slow, and may fail or give something else."""

    slowdown: float = 1.0
    timed: bool = False
    error: Exception | None = None
    version: str | None = None
    change: Callable[[np.ndarray], np.ndarray] | None = None
    how: str = "somewhere"

    @property
    def slowdown_int8(self) -> float:
        return self.slowdown

    def run(self, job: Job) -> Answer:
        if self.error is not None:
            raise self.error
        answer = Native().run(job)
        if self.version is not None:
            answer = replace(answer, onnxruntime=self.version)
        if self.change is None:
            return answer
        outputs = tuple({name: self.change(value) for name, value in one.items()} for one in answer.runs[0].outputs)
        return replace(answer, runs=(replace(answer.runs[0], outputs=outputs),))


def on(ways: dict[str, Slow], nets: Nets, candidate: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, TargetResult]:
    monkeypatch.setattr(targets, "find_way", lambda wanted: ways[wanted.address.host])
    monkeypatch.setattr(targets, "find_departure", lambda *_, **__: None)
    results = judged(nets, candidate, parse_targets(",".join(f"ssh://{host}" for host in ways)))
    return {r.target.removeprefix("ssh://"): r for r in results}


def test_what_becomes_of_a_model_that_runs_somewhere(nets: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {
        "crashed": Slow(error=ExecutionError("ended by SIGILL")),
        "gone": Slow(error=TargetError("cannot be reached")),
        "old": Slow(version="1.16.3"),
        "slow": Slow(slowdown=1e9),
        "nan": Slow(change=lambda y: y * np.float32(np.nan)),
    }
    found = on(ways, nets, nets.guarded, monkeypatch)
    assert found["crashed"].how == "somewhere"
    assert {k: (r.status, r.samples) for k, r in found.items()} == {
        "crashed": ("failed", 0),
        "gone": ("not checked", 0),
        "old": ("passed", 60),
        "slow": ("passed", 1),
        "nan": ("failed", 60),
    }
    assert found["crashed"].why == "ended by SIGILL"
    assert found["gone"].why == "cannot be reached"
    assert found["old"].why.startswith("ONNX Runtime 1.16.3 there, ")
    assert found["slow"].why == "1 of 60 samples, as time allows"
    assert "the error is new there" in found["nan"].why
    assert found["nan"].sqnr_db == -math.inf


def test_what_cannot_be_run_from_here_is_not_checked(nets: Nets, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (found,) = judged(nets, nets.full, parse_targets("arm64-cortex-a53"))
    assert found.status == "not checked"
    assert found.why == "it is not set up on this machine; run 'onnxopt targets setup arm64'"


def test_floats_that_differ_by_more_than_rounding_fail(nets: Nets, monkeypatch) -> None:
    found = on({"off": Slow(change=lambda y: y * np.float32(1.001))}, nets, nets.floats, monkeypatch)["off"]
    assert found.status == "failed"
    assert found.why == "'y' differs by 0.001 of its largest value, more than rounding explains"
    assert found.causes == ()


@pytest.mark.parametrize("passes", ["fp16:anyway=true", "quant-weights:block=32"])
def test_float16_and_products_of_few_bits_may_differ_by_what_is_not_worth_a_word(
    nets: Nets, passes: str, tmp_path: Path, monkeypatch
) -> None:
    rng = np.random.default_rng(0)
    floats, made = (
        write(tmp_path / "f.onnx", rng.uniform(-1, 1, (INPUTS, 32)).astype(np.float32), None),
        tmp_path / "m.onnx",
    )
    model = load(floats)
    PassManager(parse(passes)).run(model, nets.data)
    save(model, made)
    assert is_coarse(model)
    assert not is_coarse(load(floats))
    for factor, status in ((1.003, "passed"), (1.3, "failed")):
        ways = {"off": Slow(change=lambda y, factor=factor: y * np.float32(factor))}
        assert on(ways, nets._replace(floats=floats), made, monkeypatch)["off"].status == status


def test_speed_is_judged_where_the_clock_means_something(nets: Nets, monkeypatch) -> None:
    monkeypatch.setattr(clock, "_ROUNDS", 1)
    monkeypatch.setattr(targets, "find_way", lambda wanted: Slow(timed=True))
    monkeypatch.setattr(targets, "find_departure", lambda *_, **__: None)
    wanted = parse_targets("x86-64-avx2,ssh://pi@kitchen")
    masked, device = judged(nets, nets.guarded, wanted, Gates(min_speedup=1000))
    assert (masked.speedup or 0) > 0
    assert device.status == "failed"
    assert device.why == f"{device.speedup:.2f} times as fast as the original"


@dataclass(frozen=True)
class Fixed(Counter):
    """Counts without an emulator."""

    error: Exception | None = None

    def count(self, job: Job) -> tuple[int, ...]:
        if self.error is not None:
            raise self.error
        assert (len(job.models), len(job.feeds)) == (2, 1)
        return 300, 200


@pytest.mark.parametrize(
    ("error", "slowdown", "clock", "counted"),
    [
        (None, 1, True, (200, 300)),
        (None, 1e9, True, (None, None)),
        (None, 1, False, (None, None)),
        (ExecutionError("the emulator counted no instructions"), 1, True, (None, None)),
        (TargetError("no numpy"), 1, True, (None, None)),
    ],
    ids=["counted", "too slow", "not wanted", "failed", "missing"],
)
def test_instructions_of_both_are_counted_where_that_is_soon_done(
    nets: Nets, monkeypatch, error: Exception | None, slowdown: float, clock: bool, counted: object
) -> None:
    way = Emulated(X86_AVX2, (sys.executable,), "7.2.22", slowdown=slowdown, slowdown_int8=1)
    monkeypatch.setattr(targets, "find_way", lambda wanted: way)
    monkeypatch.setattr(targets, "find_counter", lambda way: Fixed(way, "qemu", Path("plugin"), error=error))
    wanted = parse_targets("x86-64-avx2")
    (found,) = on_targets(nets.floats, nets.guarded, nets.data, wanted, Gates(), clock=clock)
    assert (found.status, found.latency_ms) == ("passed", None)
    assert (found.instructions, found.instructions_reference) == counted


def test_what_is_too_slow() -> None:
    masked, device, old = parse_targets("x86-64-avx2,ssh://pi@kitchen,x86-64-avx")
    half = Timing(np.ones(2), np.ones(2) * 2, 0.5, 0.4, 0.6)
    same = Timing(np.ones(2), np.ones(2), 1.0, 0.98, 1.02)
    fails = ["0.50 times as fast as the original"]
    excuse = [f"{fails[0]}: processors without AVX2 have no integer kernels that are faster than float"]

    def slow(
        timing: Timing, wanted: Wanted, *, asked: float | None = None, quantized: bool = True, made_for: bool = False
    ) -> tuple[list[str], list[str]]:
        return too_slow(timing, wanted, Gates(min_speedup=asked), quantized=quantized, made_for=made_for)

    assert slow(half, masked) == (fails, [])
    assert slow(same, masked) == ([], [])
    assert slow(same, masked, asked=1.5) == ([], [])
    assert slow(same, device, asked=1.5)[0] == ["1.00 times as fast as the original"]
    assert slow(half, masked, asked=0.3) == ([], [])
    assert slow(half, old, quantized=False) == (fails, [])
    assert slow(half, old) == ([], excuse)
    assert slow(half, old, made_for=True) == (excuse, [])


def quality(sqnr_db: float, agreement: float | None = None, accuracy: float | None = None) -> Quality:
    return Quality((), sqnr_db, 1.0, agreement, accuracy, None, None, None, ())


def test_what_a_target_changes_is_added_to_what_all_samples_show(nets: Nets) -> None:
    native = validate(nets.floats, nets.guarded, nets.data)
    native = replace(native, sqnr_db=30.0, agreement=0.95, accuracy=0.8, accuracy_reference=0.81)
    here, there = quality(33.0, 0.9, 0.7), quality(32.0, 0.6, 0.7)
    found = estimate(native, here, there, 10)
    assert found.sqnr_db == pytest.approx(29)
    assert found.agreement == pytest.approx(0.75)  # three answers of ten changed, one of which decides nothing
    assert (found.accuracy, found.accuracy_reference) == (0.8, 0.81)
    assert estimate(native, quality(math.inf), quality(math.inf), 10).sqnr_db == 30
    assert estimate(native, quality(math.inf), quality(12.0), 10).sqnr_db == 12
    assert estimate(native, quality(12.0), quality(-math.inf), 10).sqnr_db == -math.inf
    assert estimate(native, quality(12.0), quality(12.0), 10).agreement is None


def test_an_error_may_double_but_not_more() -> None:
    assert grown(quality(20), quality(17.1)) == []
    assert grown(quality(20), quality(16.5)) == ["the error is 2.24 times the energy of here (16.5 dB after 20.0 dB)"]
    assert grown(quality(60), quality(41)) == []
    assert grown(quality(math.inf), quality(30)) == ["the error is new there (30.0 dB after equal)"]


def test_only_numbers_that_are_rounded_lie_apart() -> None:
    a = [{"y": np.ones(3, np.float32), "best": np.array([1])}]
    assert apart(a, [{"y": np.ones(3, np.float32), "best": np.array([2])}]) == []
    assert apart(a, [{"y": np.ones(4, np.float32), "best": np.array([1])}])[0].startswith("'y' differs by inf")


def test_samples_are_as_many_as_time_and_memory_allow(nets: Nets) -> None:
    class Large:
        count = 5000

    assert affordable(Large(), 0.001, 1) == 5000
    assert affordable(Large(), sampling.BUDGET_S / 345, 1) == 300
    assert affordable(Large(), 3.0, 1) == sampling.LEAST
    assert affordable(Large(), 25.0, 1) == 4
    assert affordable(Large(), 1e9, 1) == 1
    assert affordable(Large(), 0.001, 2**20) == 200
    assert affordable(nets.data, 0.1, 1) == nets.data.count


def test_the_first_samples_are_drawn_over_all_data(nets: Nets) -> None:
    sample = draw(nets.data, [40, 0, 25], 25)
    assert sample.dataset.count == 40
    assert sample.total == 60
    feeds, count = sample.first(25)
    assert count == sum(len(feed["x"]) for feed in feeds) == 30
    assert sample.first(1000)[1] == 40
    assert sorted(sample.dataset.rows) != list(range(40))
    other = [{"y": feed["x"].copy()} for feed in sample.feeds]
    other[2]["y"][3] += 1
    worst = sample.worst([{"y": feed["x"]} for feed in sample.feeds], other)
    np.testing.assert_array_equal(worst["x"], sample.feeds[2]["x"][3:4])


def test_one_gate_tells_of_all_targets() -> None:
    results = [TargetResult(n, "", s, "") for n, s in (("a", "passed"), ("b", "failed"), ("c", "not checked"))]
    gate = on_all(results)
    assert (gate.name, gate.limit, gate.measured, gate.holds) == ("targets", 2, 1, False)
    assert gate.why == "1 of 2 pass; fails on b; not checked on c"
    assert on_all(results[:1]).holds is True
    assert on_all(results[2:]).holds is None


def test_integers_made_for_this_machine_alone_come_with_a_warning(nets: Nets, tmp_path: Path) -> None:
    def notes(source: Path, target: Target) -> list[str]:
        options = RunOptions(target=target)
        report = optimize(source, tmp_path / "out.onnx", parse("clean"), gates=ANY_SPEED, options=options)
        assert report.verdict == "accepted"
        return [note for note in report.notes if "VNNI" in note]

    line = "on x86 without VNNI (avx2, avx512) sums of 1 layer overflow: --target any, or x86-64-avx2, guards them"
    assert notes(nets.full, NATIVE) == [line]
    assert notes(nets.guarded, NATIVE) == notes(nets.full, X86_AVX512_VNNI) == []
