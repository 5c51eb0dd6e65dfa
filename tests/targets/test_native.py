"""This machine as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxopt.errors import TargetError
from onnxopt.graph.signature import Feed
from onnxopt.runtime import session
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.machine import architecture
from onnxopt.targets.native import Native


def test_a_model_runs_in_a_process_of_its_own(telltale: Path, feed: Feed) -> None:
    way = Native()
    answer = way.run(Job(models=(telltale,), feeds=[feed], runs=2))
    assert (way.how, way.timed, way.slowdown, way.slowdown_int8) == ("natively", True, 1, 1)
    assert {"x86_64": "x86-64", "aarch64": "arm64"}.get(answer.machine, architecture()) == architecture()
    assert len(answer.runs[0].run_s) == 2
    assert set(answer.runs[0].outputs[0]) == {"sum", "dot"}


def test_another_execution_provider_comes_first(telltale: Path, feed: Feed) -> None:
    """ONNX Runtime's own kernels take what it leaves."""
    if "AzureExecutionProvider" not in session.providers():
        pytest.skip("this build has one execution provider")
    answer = Native("AzureExecutionProvider").run(Job(models=(telltale,), feeds=[feed]))
    assert answer.runs[0].providers == ("AzureExecutionProvider", "CPUExecutionProvider")


def test_an_execution_provider_that_does_not_start(telltale: Path, feed: Feed) -> None:
    """ONNX Runtime goes on without it: that is not the target."""
    with pytest.raises(TargetError, match="QNNExecutionProvider does not start here: its own libraries may be missing"):
        Native("QNNExecutionProvider").run(Job(models=(telltale,), feeds=[feed]))
