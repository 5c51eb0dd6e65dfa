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
    FileInfo,
    GateResult,
    Latency,
    OutputQuality,
    Report,
    StepReport,
    Validation,
)

VALIDATION = Validation(
    target="native",
    samples=500,
    sqnr_db=28.4,
    cosine=0.999,
    outputs=(OutputQuality("scores", 28.4, 0.999, 0.1), OutputQuality("best", math.inf, 1.0, math.nan, 1.0)),
    agreement=0.985,
    accuracy=0.805,
    accuracy_reference=0.81,
    accuracy_top5=None,
    accuracy_top5_reference=None,
    latency_ms=1.0,
    latency_reference_ms=2.0,
    latency=Latency(1.0, 0.9, 1.1),
    latency_reference=Latency(2.0, 1.9, 2.1),
    speedup=2.0,
    speedup_low=1.95,
    speedup_high=2.05,
    threads=1,
    batch=1,
    peak_memory_bytes=10_000_000,
    peak_memory_reference_bytes=None,
    notes=("a line",),
)
REPORT = Report(
    versions={"onnxopt": "0.1.0"},
    machine={"cpu": "some", "cores": 2, "instructions": ["avx2"]},
    passes=(
        StepReport("fold-bn", 0.1, 3),
        StepReport("prune:ratio=0.3", 1.5, 7, (("conv1", "first layer"), ("conv9", "last layer")), {"kept": 0.7}),
    ),
    notes=("order changed",),
    input=FileInfo("a.onnx", "00", 1000, 250, 4000),
    output=FileInfo("b.onnx", "11", 300, 250, None),
    validation=(VALIDATION,),
    gates=(
        GateResult("max-drop", 0.01, 0.005, True, "fine"),
        GateResult("min-agreement", 0.9, None, None, "no classes"),
    ),
    verdict="accepted",
)


def strict(value: Any) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(json.dumps(value, allow_nan=False), parse_constant=refuse)


def test_the_keys() -> None:
    content = strict(to_json(REPORT))
    assert list(content) == [
        *("schema", "verdict", "versions", "machine", "input", "output", "passes", "validation", "targets"),
        *("layers", "gates", "notes", "reproduce"),
    ]
    assert content["schema"] == "onnxopt-report-1"
    assert content["output"] == {"path": "b.onnx", "sha256": "11", "bytes": 300, "parameters": 250, "macs": None}
    assert content["passes"][1] == {
        "spec": "prune:ratio=0.3",
        "seconds": 1.5,
        "changed": 7,
        "skips": [{"node": "conv1", "why": "first layer"}, {"node": "conv9", "why": "last layer"}],
        "figures": {"kept": 0.7},
    }
    entry = content["validation"][0]
    assert {"target", "sqnr_db", "cosine", "agreement", "accuracy", "accuracy_reference"} <= set(entry)
    assert {"latency_ms", "latency_reference_ms", "speedup"} <= set(entry)
    assert content["gates"][1] == {
        "name": "min-agreement", "limit": 0.9, "measured": None, "holds": None, "why": "no classes",
    }  # fmt: skip


def test_numbers_that_json_lacks() -> None:
    report = replace(REPORT, validation=(replace(VALIDATION, sqnr_db=math.inf, cosine=-math.inf, speedup=math.nan),))
    entry = strict(to_json(report))["validation"][0]
    assert (entry["sqnr_db"], entry["cosine"], entry["speedup"]) == ("Infinity", "-Infinity", "NaN")
    assert float(entry["sqnr_db"]) == math.inf
    back = from_json(strict(to_json(report))).validation[0]
    assert (back.sqnr_db, back.cosine) == (math.inf, -math.inf)
    assert math.isnan(back.speedup)


def test_figures_of_all_kinds() -> None:
    figures = {
        "int": np.int64(3),
        "float": np.float32(0.5),
        "array": np.array([[1, 2]]),
        "none": None,
        "deep": {1: (True, math.inf)},
        "path": Path("x"),
        "set": {1},
    }
    step = strict(to_json(replace(REPORT, passes=(StepReport("p", 0, 0, (), figures),))))["passes"][0]
    assert step["figures"] == {
        "int": 3, "float": 0.5, "array": [[1, 2]], "none": None, "deep": {"1": [True, "Infinity"]},
        "path": "x", "set": [1],
    }  # fmt: skip


def test_there_and_back(tmp_path: Path) -> None:
    outputs = (VALIDATION.outputs[0],)  # NaN is not equal to itself
    report = replace(REPORT, validation=(replace(VALIDATION, outputs=outputs, sqnr_db=math.inf),))
    report = replace(report, passes=(*report.passes, StepReport("q", 1, 0, (), {"a": [1.5, -math.inf], "b": None})))
    write_json(report, tmp_path / "r.json")
    assert read_json(tmp_path / "r.json") == report
    assert read_json(tmp_path / "r.json").passes[1].skips == (("conv1", "first layer"), ("conv9", "last layer"))
    assert list(tmp_path.iterdir()) == [tmp_path / "r.json"]
    empty = Report({}, {})
    assert from_json(strict(to_json(empty))) == empty


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write the report .*No such file or directory; choose another place"):
        write_json(REPORT, tmp_path / "no" / "r.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write the report"):
        write_json(REPORT, tmp_path / "folder")
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
