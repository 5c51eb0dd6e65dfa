"""What a verdict is made of: a model passes when something was checked, and nothing failed that it builds on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, numpy_helper, parser

from onnxopt.deploy.finding import CheckReport
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.run import check
from onnxopt.deploy.subject import Subject
from onnxopt.errors import SpecError

WEIGHTS = "<float[2] c = {1, 2}>"


def judge(
    folder: Path, only: str, body: str = "y = Relu(x)", version: int = 17, **tables: dict[str, object]
) -> CheckReport:
    text = f'<ir_version: 8, opset_import: ["" : {version}, "corp" : 1]> g (float[N,2] x) => (float[N,2] y) {WEIGHTS}'
    path = folder / "m.onnx"
    onnx.save(parser.parse_model(f"{text} {{ {body} }}"), path)
    return check(Subject(path), Policy().with_tables({"checks": {"only": [only]}} | tables, folder))


def told(report: CheckReport) -> list[tuple[str, str]]:
    return [(f.check, f.status) for f in report.findings]


@pytest.mark.parametrize("only", ["audit", "edges", "determinism", "memory", "latency", "accuracy", "targets"])
def test_a_model_that_does_not_run_fails_whatever_was_chosen(only: str, tmp_path: Path) -> None:
    report = judge(tmp_path, only, "y = corp.Secret(x)")
    assert told(report) == [(only, "not run"), ("operators", "failed")]
    assert report.findings[0].because == "operators"
    assert report.verdict == "failed"
    assert not {only, "operators"} & set(report.left_out)


def test_it_is_told_over_several_steps(tmp_path: Path) -> None:
    report = judge(tmp_path, "edges", version=99)
    assert told(report) == [("edges", "not run"), ("operators", "not run"), ("opset", "failed")]
    assert report.verdict == "failed"


def test_where_nothing_else_is_to_blame_the_check_itself_fails(tmp_path: Path) -> None:
    """A release that nobody knows may read it: but what is installed does not."""
    report = judge(tmp_path, "operators", version=99, opset={"ort": "7.0"})
    assert told(report) == [("operators", "failed"), ("opset", "not run"), ("opset", "not run")]


def test_weights_that_are_gone_fail_the_structure(tmp_path: Path) -> None:
    judge(tmp_path, "structure", "y = Add(x, c)")
    path = tmp_path / "m.onnx"
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "c"))
    external_data_helper.set_external_data(model.graph.initializer[0], "gone.bin")
    model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    report = check(Subject(path), Policy().with_tables({"checks": {"only": ["structure"]}}, tmp_path))
    assert told(report) == [("structure", "not run"), ("external-data", "failed")]


def test_answers_that_are_bad_here_fail_the_targets(tmp_path: Path) -> None:
    judge(tmp_path, "structure", "y = Neg(x)")
    reference = (tmp_path / "m.onnx").rename(tmp_path / "r.onnx")
    judge(tmp_path, "structure", "y = Relu(x)")
    np.savez(tmp_path / "d.npz", x=np.ones((4, 2), np.float32))
    tables = {"checks": {"only": ["targets"]}, "targets": {"run": "native"}, "accuracy": {"reference": str(reference)}}
    report = check(Subject(tmp_path / "m.onnx", data=tmp_path / "d.npz"), Policy().with_tables(tables, tmp_path))
    assert told(report) == [("targets", "not run"), ("accuracy", "failed")]


def test_where_nothing_was_checked_nothing_has_passed(tmp_path: Path) -> None:
    report = judge(tmp_path, "size")
    assert told(report) == [("size", "not run")]
    assert report.verdict == "failed"
    assert judge(tmp_path, "size", size={"max": "1MB"}).verdict == "passed"


def test_checks_that_leave_each_other_out_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no check is left"):
        judge(tmp_path, "size", checks={"only": ["size"], "skip": ["size"]})
