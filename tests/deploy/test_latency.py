"""Time limits, and speed beside the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import parser

from onnxopt.deploy.latency import check_latency
from onnxopt.deploy.policy import Accuracy, Latency, Policy
from onnxopt.deploy.subject import Subject
from onnxopt.errors import SpecError


def saved(path: Path, body: str = "y = Relu(x)") -> Path:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[64,2048] x) => (y) {{ {body} }}'
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return path


def test_the_figure_is_told_without_a_limit(tmp_path: Path) -> None:
    (finding,) = check_latency(Subject(saved(tmp_path / "m.onnx")), Policy())
    assert finding.status == "not run"
    assert isinstance(finding.measured, float)
    assert 0 < finding.measured < 1000
    assert "no limit is given" in finding.why


@pytest.mark.parametrize(("most", "status"), [(60_000, "passed"), (1e-6, "failed")])
def test_a_limit_is_held_to(most: float, status: str, tmp_path: Path) -> None:
    policy = Policy(latency=Latency(max_ms=most, threads=2))
    (finding,) = check_latency(Subject(saved(tmp_path / "m.onnx")), policy)
    assert (finding.status, finding.limit) == (status, most)
    assert "with 2 threads on native" in finding.why


def test_slower_than_the_reference_fails(tmp_path: Path) -> None:
    reference = saved(tmp_path / "r.onnx")
    slow = saved(tmp_path / "m.onnx", "a = Erf(x) b = Sin(a) c = Exp(b) d = Tanh(c) y = Relu(d)")
    policy = Policy(accuracy=Accuracy(reference=reference))
    finding = check_latency(Subject(slow), policy)[1]
    assert finding.status == "failed"
    assert isinstance(finding.measured, float)
    assert finding.measured < 0.9
    assert "as fast as the reference" in finding.why
    assert check_latency(Subject(reference), Policy(accuracy=Accuracy(reference=slow)))[1].status == "passed"


def test_a_processor_that_cannot_be_timed_is_not_run(tmp_path: Path) -> None:
    subject = Subject(saved(tmp_path / "m.onnx"))
    (finding,) = check_latency(subject, Policy(latency=Latency(max_ms=1, target="native+qnn")))
    assert finding.status == "not run"
    assert "QNN" in finding.why
    with pytest.raises(SpecError, match="more than one target"):
        check_latency(subject, Policy(latency=Latency(target="native,x86-64-avx2")))
