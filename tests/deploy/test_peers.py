"""Models that other tools quantized are checked as they are, and what we quantize beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from onnxopt.core.spec import parse
from onnxopt.deploy.finding import CheckReport
from onnxopt.deploy.policy import Accuracy, Checks, Policy, Targets
from onnxopt.deploy.run import check
from onnxopt.deploy.subject import Subject
from onnxopt.job import DataOptions, RunOptions, optimize
from onnxopt.runtime.target import find_target
from onnxopt.targets.find import find_way
from onnxopt.targets.spec import parse_targets
from onnxopt.targets.way import Unavailable

SAMPLES = Path(__file__).parents[2] / "sample_models"
FLOAT = SAMPLES / "digits_resnet.onnx"
TESTS = SAMPLES / "digits_test.npz"
AVX2 = not isinstance(find_way(parse_targets("x86-64-avx2")[0]), Unavailable)


class Digits(CalibrationDataReader):
    """The calibration data as that tool reads it."""

    def __init__(self) -> None:
        with np.load(SAMPLES / "digits_calib.npz") as arrays:
            name = onnx.load(FLOAT).graph.input[0].name
            self.feeds: Iterator[dict[str, np.ndarray]] = iter([{name: arrays[name][i : i + 1]} for i in range(32)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """What that tool logs about preparing models is no news here."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def static(folder: Path, *, reduce_range: bool = False, weights: QuantType = QuantType.QInt8) -> Path:
    path = folder / "static.onnx"
    quantize_static(
        str(FLOAT), str(path), Digits(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=reduce_range,
        activation_type=QuantType.QUInt8, weight_type=weights,
    )  # fmt: skip
    return path


def checked(path: Path, *only: str) -> CheckReport:
    policy = Policy(
        checks=Checks(only=only, skip=("latency",)),  # another program may disturb it
        accuracy=Accuracy(reference=FLOAT),
        targets=Targets(run="x86-64-avx2" if AVX2 else "native"),
    )
    return check(Subject(path, data=TESTS, samples=100), policy)


def statuses(report: CheckReport) -> dict[str, str]:
    """The worst of each check."""
    order = ("not run", "passed", "failed")
    return {
        name: max((f.status for f in report.findings if f.check == name), key=order.index)
        for name in dict.fromkeys(f.check for f in report.findings)
    }


def test_full_range_weights_are_caught_by_the_lint_and_on_avx2(tmp_path: Path) -> None:
    report = checked(static(tmp_path))
    failed = {name for name, status in statuses(report).items() if status == "failed"}
    assert "saturation" in failed
    assert failed <= {"saturation", "targets"}
    risk = next(f for f in report.findings if f.check == "saturation")
    assert isinstance(risk.measured, int)
    assert risk.measured >= 3
    assert "reduce_range" in risk.remedy
    if AVX2 and "targets" in failed:
        there = next(f for f in report.findings if f.check == "targets")
        assert "16 bits" in there.why


def test_weights_of_seven_bits_pass(tmp_path: Path) -> None:
    found = statuses(checked(static(tmp_path, reduce_range=True)))
    assert "failed" not in found.values(), found
    assert found["saturation"] == found["audit"] == found["targets"] == found["accuracy"] == "passed"


def test_what_quant_makes_for_that_processor_passes(tmp_path: Path) -> None:
    path = tmp_path / "own.onnx"
    report = optimize(
        FLOAT,
        path,
        parse("fold-bn,quant:measure=false"),
        data=DataOptions(data=SAMPLES / "digits_calib.npz", samples=64),
        options=RunOptions(target=find_target("x86-64-avx2"), validate=False),
    )
    assert report.verdict == "not validated"
    found = statuses(checked(path, "saturation", "audit", "accuracy", "targets"))
    assert set(found.values()) == {"passed"}, found


def test_dynamic_quantization_is_checked_as_well(tmp_path: Path) -> None:
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(str(SAMPLES / "digits_transformer.onnx"), str(path), weight_type=QuantType.QInt8)
    policy = replace(Policy(), targets=Targets(run="native"))
    report = check(Subject(path, data=TESTS, samples=50), policy)
    assert {f.check for f in report.findings if f.status == "failed"} == {"saturation"}
    share = next(f for f in report.findings if f.check == "audit").measured
    assert isinstance(share, float)
    assert share > 0.5
