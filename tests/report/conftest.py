"""A comparison and a report that hold a bit of everything; files of tests change what they are about."""

import math

import pytest

from onnxopt.report.report import FileInfo, GateResult, Latency, OutputQuality, Report, StepReport, Validation

SKIPS = (*((f"conv{i}", "shares its channels") for i in range(5)), ("[red]x[/red]", "last layer"))


@pytest.fixture(scope="session")
def validation() -> Validation:
    return Validation(
        target="native",
        samples=500,
        sqnr_db=28.4,
        cosine=0.99912,
        outputs=(OutputQuality("scores", 28.4, 0.999, 0.1), OutputQuality("best", 20.0, 0.99, math.nan, 0.99)),
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
        peak_memory_bytes=5_000_000,
        peak_memory_reference_bytes=10_000_000,
        notes=("of the validation",),
    )


@pytest.fixture(scope="session")
def report(validation: Validation) -> Report:
    prune = StepReport("prune:ratio=0.3", 1.5, 7, SKIPS, {"kept": 0.71234, "layers": {"a": 1}, "bits": 8})
    return Report(
        versions={"onnx": "1.23"},
        machine={"cpu": "fast one", "instructions": ["avx", "vnni"], "memory_bytes": 8_000_000_000, "system": None},
        passes=(StepReport("fold-bn", 0.1, 3), prune),
        notes=("of the run", "of the run"),
        input=FileInfo("a.onnx", "0a0b", 1000, 250, 4000),
        output=FileInfo("b.onnx", "1c1d", 300, 200, None),
        validation=(validation,),
        gates=(
            GateResult("max-drop", 0.01, 0.005, True, "0.5 points lost"),
            GateResult("min-speedup", 3, 2.0, False, "3 wanted"),
            GateResult("other", 0, None, None, "nothing to judge"),
        ),
        verdict="accepted",
    )
