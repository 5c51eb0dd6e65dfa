"""Equal answers each time."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import parser

from onnxopt.deploy.determinism import check_determinism
from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Determinism, Policy
from onnxopt.deploy.subject import Subject


def found(path: Path, body: str, policy: Policy | None = None) -> list[Finding]:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,8] x) => (y) {{ {body} }}'
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return check_determinism(Subject(path), policy or Policy())


def test_an_ordinary_model_passes(tmp_path: Path) -> None:
    (finding,) = found(tmp_path / "m.onnx", "y = Softmax(x)")
    assert finding.status == "passed"
    assert finding.why == "equal answers in 3 runs, in other processes, and with 1 and 2 threads"


@pytest.mark.parametrize("seed", ["", "<seed = 1.0>"])
def test_chance_fails_with_a_seed_or_without(seed: str, tmp_path: Path) -> None:
    (finding,) = found(tmp_path / "m.onnx", f"r = RandomNormalLike {seed} (x) y = Add(x, r)")
    assert (finding.status, finding.places) == ("failed", ("y",))
    assert "the same session gives another answer, to the same sample, in 'y'" in finding.why


def test_processes_must_agree(tmp_path: Path) -> None:
    policy = Policy(determinism=Determinism(repeats=1, threads=(1,)))
    (finding,) = found(tmp_path / "m.onnx", "r = RandomNormalLike(x) y = Add(x, r)", policy)
    assert finding.why.startswith("another process gives another answer")


def test_more_threads_must_agree(tmp_path: Path) -> None:
    policy = Policy(determinism=Determinism(repeats=1, threads=(2,)))
    (finding,) = found(tmp_path / "m.onnx", "r = RandomNormalLike(x) y = Add(x, r)", policy)
    assert finding.why.startswith("with 2 threads it gives another answer than with 1")
