"""Edge inputs: what is judged, what is excused, what is only told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from onnxopt.deploy.edges import check_edges
from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Accuracy, Edges, Policy
from onnxopt.deploy.subject import Subject


def saved(path: Path, body: str, inputs: str = "float[N,4] x", constants: str = "") -> Path:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (y) {constants} {{ {body} }}'
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return path


def found(path: Path, policy: Policy | None = None, **data: np.ndarray) -> list[Finding]:
    if data:
        np.savez(path.with_suffix(".npz"), **data)
    return check_edges(Subject(path, data=path.with_suffix(".npz") if data else None), policy or Policy())


RATIO = "a = ReduceSum<keepdims=1>(x) y = Div(x, a)"


def test_a_sound_model_passes_and_says_what_was_tried(tmp_path: Path) -> None:
    (finding,) = found(saved(tmp_path / "m.onnx", "y = Relu(x)"))
    assert finding.status == "passed"
    for what in ("zeros", "ones", "the least of the data", "least and most in turn", "batch 1", "batch 3"):
        assert what in finding.why


def test_nan_of_zeros_fails_with_the_output(tmp_path: Path) -> None:
    findings = found(saved(tmp_path / "m.onnx", RATIO))
    zeros = next(f for f in findings if f.why.startswith("zeros"))
    assert (zeros.status, zeros.why, zeros.places) == ("failed", "zeros: NaN in 'y'", ("y",))


def test_a_reference_that_does_the_same_excuses_it(tmp_path: Path) -> None:
    reference = saved(tmp_path / "r.onnx", RATIO)
    policy = Policy(accuracy=Accuracy(reference=reference))
    (finding,) = found(saved(tmp_path / "m.onnx", RATIO), policy)
    assert finding.status == "passed"
    assert "not held against it: NaN for zeros" in finding.why
    sound = Policy(accuracy=Accuracy(reference=saved(tmp_path / "s.onnx", "y = Relu(x)")))
    assert found(tmp_path / "m.onnx", sound)[0].status == "failed"


def test_far_outside_the_data_is_only_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", "y = Exp(x)")
    (finding,) = found(path, x=np.random.default_rng(0).uniform(-20, 20, (20, 4)).astype(np.float32))
    assert finding.status == "passed"
    assert "not held against it: infinity for 10 times the range of the data" in finding.why


def test_what_the_data_itself_does_is_told_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", "z = Relu(x) y = Log(z)")
    findings = found(path, x=np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4))
    assert [f.why for f in findings] == ["a sample of the data: infinity in 'y'"]


def test_integers_keep_to_the_data(tmp_path: Path) -> None:
    """A table of five rows, of which the data names three: another number would be out of range."""
    path = saved(tmp_path / "m.onnx", "y = Gather(t, x)", "int64[N,2] x", "<float[5,1] t = {0, 1, 2, 3, 4}>")
    (finding,) = found(path, x=np.array([[1, 2], [3, 4]] * 4))
    assert finding.status == "passed", finding.why
    assert "zeros" not in finding.why


def test_inputs_that_never_change_stay_as_they_are(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", "y = Div(x, mask)", "float[N,4] x, float[N,4] mask")
    values = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    (finding,) = found(path, x=values, mask=np.ones_like(values))
    assert finding.status == "passed", finding.why


def test_a_batch_that_is_free_has_to_work(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", "y = Reshape(x, s)", constants="<int64[2] s = {1, 4}>")
    (finding,) = found(path)
    assert finding.status == "failed"
    assert finding.why.startswith("batch 3: the model failed to run")
    assert "baked in" in finding.remedy
    assert found(path, Policy(edges=Edges(batches=(1,))))[0].status == "passed"
    fixed = saved(tmp_path / "f.onnx", "y = Reshape(x, s)", "float[1,4] x", "<int64[2] s = {1, 4}>")
    assert "batch" not in found(fixed)[0].why


@pytest.mark.parametrize(
    ("reference", "largest", "status"),
    [(None, None, "passed"), ("y = Relu(x)", None, "failed"), ("Reshape", 9, "passed")],
)
def test_sizes_that_do_not_work(reference: str | None, largest: int | None, status: str, tmp_path: Path) -> None:
    """Told; a failure where the reference can."""
    body, inputs, constants = "y = Reshape(x, s)", "float[N,length] x", "<int64[2] s = {-1, 16}>"
    path = saved(tmp_path / "m.onnx", body, inputs, constants)
    accuracy = Accuracy()
    if reference is not None:
        other = (body, inputs, constants) if reference == "Reshape" else (reference, inputs, "")
        accuracy = Accuracy(reference=saved(tmp_path / "r.onnx", *other))
    findings = found(path, Policy(accuracy=accuracy, edges=Edges(largest=largest)))
    assert {f.status for f in findings} == {status}, findings
    if status == "passed":
        assert "does not run for size 1 of 'length'" in findings[0].why


def test_a_size_that_was_asked_for_has_to_work(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", "y = Reshape(x, s)", "float[N,length] x", "<int64[2] s = {-1, 16}>")
    policy = Policy(edges=Edges(largest=9, batches=(1,)))
    assert [f.why.split(":")[0] for f in found(path, policy)] == ["size 9 of 'length'"]
