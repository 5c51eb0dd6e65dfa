"""Answers against labels and against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from onnx import numpy_helper, parser

from onnxopt.deploy.accuracy import check_accuracy
from onnxopt.deploy.policy import Accuracy, Policy
from onnxopt.deploy.subject import Subject
from onnxopt.errors import ModelError

RNG = np.random.default_rng(0)
VALUES = RNG.standard_normal((400, 8)).astype(np.float32)


def saved(path: Path, weights: npt.ArrayLike, output: str = "y") -> Path:
    """Scores are ``x @ weights``."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,8] x) => ({output}) {{ {output} = MatMul(x, w) }}'
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(weights, np.float32), "w"))
    path.write_bytes(model.SerializeToString())
    return path


def labelled(folder: Path, *, right: float = 1.0) -> Path:
    """Samples whose largest value is their class, for such a share of them."""
    labels = VALUES.argmax(axis=1)
    wrong = RNG.random(len(labels)) >= right
    np.savez(folder / "d.npz", x=VALUES, labels=np.where(wrong, (labels + 1) % 8, labels))
    return folder / "d.npz"


def test_made_up_data_tells_nothing(tmp_path: Path) -> None:
    (finding,) = check_accuracy(Subject(saved(tmp_path / "m.onnx", np.eye(8))), Policy())
    assert (finding.status, finding.why) == ("not run", "made-up data tells nothing of it; give --data")


def test_without_labels_and_reference_there_is_nothing_to_hold_it_against(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=VALUES)
    (finding,) = check_accuracy(Subject(saved(tmp_path / "m.onnx", np.eye(8)), data=tmp_path / "d.npz"), Policy())
    assert finding.status == "not run"
    assert "give a reference, or data with labels" in finding.why


@pytest.mark.parametrize(("least", "status"), [(None, "passed"), (0.8, "passed"), (0.95, "failed")])
def test_the_least_accuracy(least: float | None, status: str, tmp_path: Path) -> None:
    subject = Subject(saved(tmp_path / "m.onnx", np.eye(8)), data=labelled(tmp_path, right=0.9))
    (finding,) = check_accuracy(subject, Policy(accuracy=Accuracy(min_accuracy=least)))
    assert (finding.status, finding.limit) == (status, least)
    assert finding.measured == pytest.approx(0.9, abs=0.05)
    assert "of the answers are right" in finding.why


def test_labels_that_do_not_fit_fail_only_what_was_asked_for(tmp_path: Path) -> None:
    subject = Subject(saved(tmp_path / "m.onnx", -np.eye(8)), data=labelled(tmp_path))
    (told,) = check_accuracy(subject, Policy())
    assert told.status == "not run"
    assert "labels not used" in told.why
    assert check_accuracy(subject, Policy(accuracy=Accuracy(min_accuracy=0.5)))[0].status == "failed"


def test_the_gates_against_the_reference(tmp_path: Path) -> None:
    reference = saved(tmp_path / "r.onnx", np.eye(8))
    noisy = saved(tmp_path / "m.onnx", np.eye(8) + 0.3 * RNG.standard_normal((8, 8)))
    subject = Subject(noisy, data=labelled(tmp_path))

    def judged(**gates: float) -> dict[str, str]:
        found = check_accuracy(subject, Policy(accuracy=Accuracy(reference=reference, **gates)))[1:]
        return {f.why.split(",")[-1].strip(): f.status for f in found}

    assert judged() == {"1 allowed": "failed"}  # points of accuracy: there are labels enough
    assert judged(max_drop=0.9, min_agreement=0.2) == {"90 allowed": "passed", "20.0 % wanted": "passed"}
    assert judged(min_sqnr=1.0, min_agreement=0.999) == {"99.9 % wanted": "failed", "1 dB wanted": "passed"}


def test_a_reference_with_other_outputs_is_an_error(tmp_path: Path) -> None:
    reference = saved(tmp_path / "r.onnx", np.eye(8), "scores")
    subject = Subject(saved(tmp_path / "m.onnx", np.eye(8)), data=labelled(tmp_path))
    with pytest.raises(ModelError, match="no output 'scores', which the reference has"):
        check_accuracy(subject, Policy(accuracy=Accuracy(reference=reference)))
