"""Other processors as a check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from onnx import numpy_helper, parser

from onnxopt.deploy import targets
from onnxopt.deploy.policy import Accuracy, Policy, Targets
from onnxopt.deploy.subject import Subject
from onnxopt.deploy.targets import check_targets
from onnxopt.errors import SpecError

VALUES = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)


def saved(path: Path, weights: npt.ArrayLike) -> Path:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,8] x) => (float[N,8] y) { y = MatMul(x, w) }'
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(weights, np.float32), "w"))
    path.write_bytes(model.SerializeToString())
    return path


def on(*names: str, reference: Path | None = None) -> Policy:
    return Policy(targets=Targets(run=",".join(names) or None), accuracy=Accuracy(reference=reference))


def test_one_finding_for_each_target(tmp_path: Path) -> None:
    subject = Subject(saved(tmp_path / "m.onnx", np.eye(8)))
    native, missing = check_targets(subject, on("native", "native+qnn"))
    assert (native.status, native.places) == ("passed", ("native",))
    assert native.why == "native (natively): its answers are those of this machine"
    assert missing.status == "not run"
    assert "QNN" in missing.why


def test_with_data_and_a_reference_it_is_held_against_that(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=VALUES)
    reference = saved(tmp_path / "r.onnx", np.eye(8))
    near = Subject(saved(tmp_path / "m.onnx", np.eye(8) * 1.01), data=tmp_path / "d.npz")
    (finding,) = check_targets(near, on("native", reference=reference))
    assert (finding.status, finding.measured) == ("passed", pytest.approx(40, abs=0.1))
    assert finding.why == "native (natively): 40.0 dB signal to noise against the reference's"


def test_what_is_bad_here_is_not_run_elsewhere(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=VALUES)
    reference = saved(tmp_path / "r.onnx", np.eye(8))
    far = Subject(saved(tmp_path / "m.onnx", -np.eye(8)), data=tmp_path / "d.npz")
    (finding,) = check_targets(far, on("native", reference=reference))
    assert (finding.status, finding.why) == (
        "not run",
        "its answers are not good enough on this machine: see 'accuracy'",
    )


def test_a_target_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="x86-64-avx3"):
        check_targets(Subject(saved(tmp_path / "m.onnx", np.eye(8))), on("x86-64-avx3"))


def test_nothing_to_show_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "default_targets", tuple)
    (finding,) = check_targets(Subject(saved(tmp_path / "m.onnx", np.eye(8))), on())
    assert (finding.status, finding.why) == ("not run", "no other processor can be shown from here")
    assert "onnxopt targets setup arm64" in finding.remedy
