"""Targets in a report: the table, what is said below it, and JSON."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from onnxopt.report.json import from_json, to_json
from onnxopt.report.report import Cause, GateResult, Remedy, Report, TargetResult, Validation
from onnxopt.report.rows import TARGETS, target_notes, targets, verdict
from onnxopt.report.text import render

GUARD = Cause(
    "16-bit saturation", "pairs overflow", (Remedy("--target any", "a bit less"), Remedy("uint8 weights", ""))
)
RESULTS = (
    TargetResult(
        "x86-64-avx512vnni", "masked", "passed", "", 500, 28.4, 28.4, 0.985, 0.985, 0.805, 0.805, math.inf, 1.0, 0.0,
        1.0, 2.0, 2.2, 2.1, 2.3,
    ),
    TargetResult(
        "x86-64-avx2", "masked", "failed", "the error is large", 500, 8.1, 28.4, 0.685, 0.985, 0.6, 0.805, 8.2, 0.7234,
        1.5, 1.0, 2.0, 1.7, 1.6, 1.8, departure="Conv 'c1': 3 % differ", causes=(GUARD,),
    ),
    TargetResult("arm64-cortex-a53", "emulated", "passed", "8 of 500 samples", 8, -math.inf, parity_db=41.2),
    TargetResult(
        "arm64-cortex-a72", "emulated", "passed", "8 of 500 samples", 8, 30.0, parity_db=41.2,
        instructions=15_700_000, instructions_reference=20_200_000,
    ),
    TargetResult("arm64-neoverse-v1", "", "not checked", "it is not set up"),
)  # fmt: skip
GATE = GateResult("targets", 4, 3, False, "3 of 4 pass")


@pytest.fixture(scope="module")
def report(validation: Validation) -> Report:
    return Report({}, {}, validation=(validation,), targets=RESULTS, gates=(GATE,), verdict="rejected")


def text(report: Report, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(report))
    return console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above


def test_a_row_for_each_and_this_machine_first(report: Report, validation: Validation) -> None:
    rows = targets(report)
    assert {len(row) for row in rows} == {len(TARGETS)}
    assert rows[0] == ("native", "500", "28.4 dB", "98.5 %", "80.5 %", "", "2.00 x", "")
    assert rows[1] == ("x86-64-avx512vnni", "500", "28.4 dB", "98.5 %", "80.5 %", "equal", "2.20 x", "passed")
    assert rows[2][5:] == ("8.2 dB 72.3 %", "1.70 x", "failed")
    assert rows[3] == ("arm64-cortex-a53", "8", "-inf dB", "", "", "41.2 dB", "", "passed")
    assert rows[5] == ("arm64-neoverse-v1", *[""] * 6, "not checked")
    assert targets(Report({}, {}, validation=(validation,))) == []


def test_failures_come_with_layer_cause_and_remedies(report: Report) -> None:
    assert target_notes(report) == [
        ("x86-64-avx2", "the error is large"),
        ("  departs", "first in Conv 'c1': 3 % differ"),
        ("  16-bit saturation", "pairs overflow"),
        ("  remedy", "--target any (a bit less)"),
        ("  remedy", "uint8 weights"),
        ("arm64-cortex-a53, arm64-cortex-a72", "8 of 500 samples"),
        ("arm64-neoverse-v1", "not checked: it is not set up"),
        ("arm64-cortex-a72", "a run takes 15.7 M instructions, 0.78 of the original's 20.2 M"),
    ]


@pytest.mark.parametrize("width", [100, 120])
def test_a_target_is_a_line(report: Report, width: int) -> None:
    lines = text(report, width).splitlines()
    for result in RESULTS:
        (line,) = [found for found in lines if found.strip().startswith(f"{result.target} ")]
        assert line.split()[-1] == result.status.split()[-1]
    assert "rejected: targets fails" in lines[-1]


def test_what_was_not_judged_is_not_accepted_in_silence(report: Report) -> None:
    away = replace(GATE, measured=None, holds=None, why="not checked")
    report = replace(report, gates=(away,), verdict="accepted")
    assert verdict(report) == "accepted: every gate that was judged holds; not judged: targets"


def test_there_and_back(report: Report) -> None:
    content = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert content["targets"][0]["parity_db"] == "Infinity"
    assert content["targets"][1]["causes"][0]["remedies"][0] == {"what": "--target any", "price": "a bit less"}
    assert from_json(content).targets == RESULTS
