"""The first run: whose fault it is when it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from onnxopt.deploy import trial
from onnxopt.deploy.memory import check_memory
from onnxopt.deploy.policy import Memory, Policy
from onnxopt.deploy.subject import Subject
from onnxopt.deploy.trial import run_bounded, telling
from onnxopt.errors import ExecutionError


def subject(folder: Path, body: str, constants: str = "") -> Subject:
    text = f'<ir_version: 8, opset_import: ["" : 17, "corp" : 1]> g (float[N,4] x) => (y) {constants} {{ {body} }}'
    path = folder / "m.onnx"
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return Subject(path)


def test_a_model_that_runs_has_an_answer_to_one_sample_twice(tmp_path: Path) -> None:
    found = subject(tmp_path, "y = Relu(x)").trial
    (run,) = found.ran().runs
    assert len(run.sha256) == 2
    np.testing.assert_array_equal(run.outputs[0]["y"], np.maximum(found.feed["x"], 0))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("y = corp.Secret(x)", "operators"),
        ("s = Shape(x) t = Expand(big, s) y = Expand(x, big)", "memory"),
        ("y = Reshape(x, odd)", "edges"),
    ],
)
def test_each_failure_is_of_one_check(body: str, fault: str, tmp_path: Path) -> None:
    found = subject(tmp_path, body, "<int64[3] big = {1000000, 100000, 1}, int64[1] odd = {3}>").trial
    assert found.fault == fault, found.why
    assert [f.status for f in found.instead(fault)] == ["failed"]
    (other,) = found.instead("accuracy")
    assert (other.status, other.why) == ("not run", f"the model does not run: see '{fault}'")
    with pytest.raises(ExecutionError):
        found.ran()


def test_inputs_that_cannot_be_handed_on_are_nobodys_fault(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> g (bfloat16[N,4] x) => (float[N,4] y) { y = Cast<to=1>(x) }'
    path.write_bytes(parser.parse_model(text).SerializeToString())
    found = Subject(path).trial
    assert found.fault is None
    (finding,) = found.instead("edges")
    assert finding.status == "not run"
    assert "bfloat16 cannot be handed to another process" in finding.why


@pytest.mark.parametrize(("at", "fault"), [("load", "operators"), ("run", "edges")])
def test_a_crash_is_the_fault_of_what_was_done(
    at: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "crash.py"
    program.write_text(
        "import json, os, runpy, signal, sys\n"
        "request = json.load(open(sys.argv[3]))\n"
        f"if {at == 'load'} or request['count']:\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "sys.argv = sys.argv[2:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    monkeypatch.setattr(trial.bounded, "__file__", str(program))
    found = subject(tmp_path, "y = Relu(x)").trial
    assert found.fault == fault, found.why
    assert "ended by SIGSEGV" in found.why


def test_a_loop_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TIME_LIMIT_S", 1.0)
    loop = "b (int64 i, bool c, float[N,4] a) => (bool d, float[N,4] e) { d = Identity(c) e = Sin(a) }"
    body = f"y = Loop(n, , x) <body = {loop}>"
    found = subject(tmp_path, body, "<int64 n = {4611686018427387904}>").trial
    assert found.fault == "latency", found.why
    assert "longer than 1 s" in found.why


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_most", lambda: 1_500_000_000)
    wide = subject(tmp_path, "a = Expand(x, s) y = ReduceSum<keepdims=0>(a)", "<int64[3] s = {200000000, 1, 4}>")
    with pytest.raises(ExecutionError, match=r"Failed to allocate|bad_alloc"):
        run_bounded((wide.path,), [{"x": np.ones((1, 4), np.float32)}])
    assert "more memory than the 1.50 GB" in wide.trial.why


def test_errors_are_told_without_numbers_and_places_in_source() -> None:
    raw = (
        "the model failed to run here: Fail: [ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while "
        "running Reshape node. Name:'r' Status Message: /onnxruntime_src/a/b.h:91 void f(int) sizes do not fit"
    )
    assert telling(raw) == "the model failed to run here: Reshape 'r' sizes do not fit"


def test_memory_is_told_and_held_against_a_limit(tmp_path: Path) -> None:
    it = subject(tmp_path, "y = Relu(x)")
    (told,) = check_memory(it, Policy())
    assert told.status == "not run"
    assert isinstance(told.measured, int)
    assert 1e5 < told.measured < 1e9
    assert "no limit is given" in told.why
    (held,) = check_memory(it, Policy(memory=Memory(max=10**9)))
    assert (held.status, held.limit) == ("passed", 10**9)
    (failed,) = check_memory(it, Policy(memory=Memory(max=1000)))
    assert failed.status == "failed"
    assert "1.00 kB allowed" in failed.why


def test_the_reason_is_told_to_its_end(tmp_path: Path) -> None:
    why = subject(tmp_path, "y = Reshape(x, odd)", "<int64[1] odd = {3}>").trial.why
    assert "requested shape:{3}" in why
    assert "onnxruntime_src" not in why
