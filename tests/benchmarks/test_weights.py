"""The benchmark's own parts: its tools are there, a tool's file is judged, and what fails is a row that says why."""

import argparse
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "benchmarks"
FOLDER = ROOT / "weights"
SETUP = tomllib.loads((FOLDER / "tools.toml").read_text(encoding="utf-8"))


@pytest.fixture
def module(monkeypatch):
    """Import one of the benchmark's modules as its script does."""
    monkeypatch.syspath_prepend(ROOT / "common")
    monkeypatch.syspath_prepend(FOLDER)
    yield import_module
    for name in ("run", "tables", "texts", "work", "reference", "environments", "samples"):
        sys.modules.pop(name, None)


def test_every_tool_has_an_adapter_and_an_environment_and_a_name_of_its_own() -> None:
    tools = SETUP["tools"]
    assert len({t["name"] for t in tools}) == len(tools)
    assert all((FOLDER / "peers" / f"use_{t['adapter']}.py").is_file() for t in tools)
    assert {t["environment"] for t in tools} - {""} == set(SETUP["environments"])


def test_a_file_is_judged_and_a_failure_is_a_row(module, tmp_path) -> None:
    run, work = module("run"), module("work")
    tools = [
        work.Tool("onnxopt, nearest", "", "onnxopt", {"passes": "quant-weights:rounding=nearest", "data": False}),
        work.Tool("onnxopt, wrong", "", "onnxopt", {"passes": "quant-weights:bits=5", "data": False}),
        work.Tool("nobody", "nowhere", "onnxopt", {}),
    ]
    arguments = argparse.Namespace(environments=tmp_path, seconds=60, gigabytes=12, timing=0)
    files = run.places("digits_transformer", tmp_path, tmp_path)
    good, wrong, absent = run.compare(files, tools, {"nowhere": ["./no-such-folder"]}, arguments)
    assert good["sqnr_db"] == pytest.approx(26.6, abs=0.5)
    assert 0.15 < good["bytes"] / good["bytes_float"] < 0.25
    assert "speed" not in good
    assert "bits" in wrong["error"]
    assert "does not install" in absent["error"]


def test_samples_of_a_model_are_named_after_it(module) -> None:
    found = module("run").places("m", Path("models"), Path("samples"))
    assert found == (Path("models/m.onnx"), Path("samples/m.calib.npz"), Path("samples/m.eval.npz"))


def test_the_table_says_what_failed_and_what_nobody_changed(module) -> None:
    done = {"ok": True, "seconds": 1.23, "bytes": 20, "bytes_float": 100}
    rows = [
        {"model": "m", "tool": "a", "sqnr_db": 31.26, "speed": 1.5, "speed_low": 1.4, "speed_high": 1.6, **done},
        {"model": "m", "tool": "b", "sqnr_db": float("inf"), **done},
        {"model": "n", "tool": "a", "error": "ValueError: 1 | 2"},
    ]
    assert module("tables").document(rows).splitlines()[2:] == [
        "| m | a | 31.3 | 20 % | 1.50 (1.40-1.60) | 1.2 |",
        "|  | b | unchanged | 20 % |  | 1.2 |",
        "| n | a | fails: ValueError: 1 / 2 |  |  |  |",
    ]
