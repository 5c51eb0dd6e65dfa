"""Reports as JSON: strictly valid, in a stable order, and back again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import DataError, OutputError
from onnxopt.graph.cost import OperatorCost
from onnxopt.report.execution import Execution, Product, Step
from onnxopt.report.inspection import Inspection, Prospect
from onnxopt.report.json import from_json, read_json, to_json, write_execution, write_inspection, write_json
from onnxopt.report.report import (
    Report,
    StepReport,
    Validation,
)


def strict(value: Any) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(json.dumps(value, allow_nan=False), parse_constant=refuse)


def test_the_keys(report: Report) -> None:
    content = strict(to_json(report))
    assert list(content) == [
        *("schema", "verdict", "versions", "machine", "input", "output", "passes", "validation", "targets"),
        *("layers", "gates", "notes", "reproduce"),
    ]
    assert content["schema"] == "onnxopt-report-1"
    assert content["output"] == {"path": "b.onnx", "sha256": "1c1d", "bytes": 300, "parameters": 200, "macs": None}
    assert content["passes"][1] == {
        "spec": "prune:ratio=0.3",
        "seconds": 1.5,
        "changed": 7,
        "skips": [{"node": node, "why": why} for node, why in report.passes[1].skips],
        "figures": {"kept": 0.71234, "layers": {"a": 1}, "bits": 8},
    }
    entry = content["validation"][0]
    assert {"target", "sqnr_db", "cosine", "agreement", "accuracy", "accuracy_reference"} <= set(entry)
    assert {"latency_ms", "latency_reference_ms", "speedup"} <= set(entry)
    assert content["gates"][2] == {
        "name": "other", "limit": 0, "measured": None, "holds": None, "why": "nothing to judge",
    }  # fmt: skip


def test_numbers_that_json_lacks(report: Report, validation: Validation) -> None:
    report = replace(report, validation=(replace(validation, sqnr_db=math.inf, cosine=-math.inf, speedup=math.nan),))
    entry = strict(to_json(report))["validation"][0]
    assert (entry["sqnr_db"], entry["cosine"], entry["speedup"]) == ("Infinity", "-Infinity", "NaN")
    assert float(entry["sqnr_db"]) == math.inf
    back = from_json(strict(to_json(report))).validation[0]
    assert (back.sqnr_db, back.cosine) == (math.inf, -math.inf)
    assert math.isnan(back.speedup)


def test_figures_of_all_kinds(report: Report) -> None:
    figures = {
        "int": np.int64(3),
        "float": np.float32(0.5),
        "array": np.array([[1, 2]]),
        "none": None,
        "deep": {1: (True, math.inf)},
        "path": Path("x"),
        "set": {1},
    }
    step = strict(to_json(replace(report, passes=(StepReport("p", 0, 0, (), figures),))))["passes"][0]
    assert step["figures"] == {
        "int": 3, "float": 0.5, "array": [[1, 2]], "none": None, "deep": {"1": [True, "Infinity"]},
        "path": "x", "set": [1],
    }  # fmt: skip


def test_there_and_back(report: Report, validation: Validation, tmp_path: Path) -> None:
    outputs = (validation.outputs[0],)  # NaN is not equal to itself
    report = replace(report, validation=(replace(validation, outputs=outputs, sqnr_db=math.inf),))
    report = replace(report, passes=(*report.passes, StepReport("q", 1, 0, (), {"a": [1.5, -math.inf], "b": None})))
    write_json(report, tmp_path / "r.json")
    assert read_json(tmp_path / "r.json") == report
    assert read_json(tmp_path / "r.json").passes[1].skips[5] == ("[red]x[/red]", "last layer")
    assert list(tmp_path.iterdir()) == [tmp_path / "r.json"]
    empty = Report({}, {})
    assert from_json(strict(to_json(empty))) == empty


def test_a_folder_that_cannot_be_written(report: Report, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write the report .*No such file or directory; choose another place"):
        write_json(report, tmp_path / "no" / "r.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write the report"):
        write_json(report, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not JSON"),
        ("[]", "no report of this version of onnxopt: its schema is not 'onnxopt-report-1'"),
        ('{"schema": "other"}', "no report of this version"),
        ('{"schema": "onnxopt-report-1"}', "the report is damaged: TypeError"),
        ('{"schema": "onnxopt-report-1", "versions": {}, "machine": {}, "input": 3}', "the report is damaged"),
    ],
)
def test_what_is_no_report(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(DataError) as raised:
        read_json(path)
    assert message in str(raised.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the report .*No such file"):
        read_json(tmp_path / "r.json")


def test_inspections(tmp_path: Path) -> None:
    total = OperatorCost("total", 2, 10, 40, None)
    found = Inspection(
        "m.onnx", "maker", {"": 17}, ("x: f",), ("y: f",), total, (total,), (Prospect("clean", True, 1),)
    )
    write_inspection(found, tmp_path / "i.json")
    content = json.loads((tmp_path / "i.json").read_text())
    assert content["schema"] == "onnxopt-inspection-1"
    assert content["total"] == {"op": "total", "count": 2, "parameters": 10, "weight_bytes": 40, "macs": None}
    assert content["passes"] == [{"spec": "clean", "exact": True, "changed": 1, "skips": [], "failed": ""}]


def test_executions(tmp_path: Path) -> None:
    product = Product("a", "Conv", "float", "Conv", None, None, "its input is float", "quantize it")
    found = Execution(
        "m.onnx", "native", {}, None, 0, 1, 0, 1, 2, 3, {"Conv": 1}, (product,), (Step("q", "QuantizeLinear", True),)
    )
    write_execution(found, tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["schema"] == "onnxopt-audit-1"
    assert content["integer_share"] is None
    assert content["products"] == [
        {"node": "a", "op": "Conv", "runs": "float", "kernel": "Conv", "macs": None, "share": None,
         "why": "its input is float", "mend": "quantize it"}
    ]  # fmt: skip
    assert content["steps"] == [{"node": "q", "op": "QuantizeLinear", "left": True}]
