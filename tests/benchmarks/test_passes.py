"""The tables of the docs: what they name exists, a run becomes a row, and what fails is a row that says why."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

from onnxopt.core.spec import parse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def module(monkeypatch):
    """The script, imported; its clocks run briefly."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "common")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    found = import_module("passes")
    monkeypatch.setattr(found, "_TIMING_S", 0.01)
    yield found
    for name in ("passes", "reference", "samples", "texts"):
        sys.modules.pop(name, None)


def run(module, monkeypatch, capsys, *arguments: str) -> tuple[list[str], str]:
    """The lines that the script prints, and what it says besides."""
    monkeypatch.setattr(sys, "argv", ["passes.py", *arguments])
    module.main()
    said = capsys.readouterr()
    return said.out.splitlines(), said.err


def test_every_table_belongs_to_a_page_that_names_its_command(module) -> None:
    for name, table in module.tables().items():
        page = (ROOT / "docs" / f"{name.removesuffix('-others')}.md").read_text(encoding="utf-8")
        assert f"benchmarks/passes.py {name}" in page
        assert {"bytes", "parameters"} & set(table["columns"])
        for group in table["rows"]:
            assert all(parse(spec) for spec in group["passes"])
            assert len(set(group["models"])) == len(group["models"])


def test_runs_are_rows_and_a_failure_is_one_too(module, monkeypatch, capsys) -> None:
    specs = "quant-weights:rounding=nearest;quant-weights:bits=5"
    lines, _ = run(module, monkeypatch, capsys, "--passes", specs, "--only", "digits_mlp")
    head, _, nearest, wrong = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    assert head == ["model", "passes", *(module.HEADS.get(name, name) for name in module.COLUMNS)]
    found = dict(zip(head, nearest, strict=True))
    assert found["model"] == "digits_mlp"
    assert float(found["bytes"].removesuffix(" %")) == pytest.approx(16, abs=2)
    assert float(found["SQNR, dB"]) == pytest.approx(25, abs=5)
    assert (found["parameters"], found["MACs"]) == ("100.0 %", "100.0 %")
    assert wrong[:2] == ["", "`quant-weights:bits=5`"]
    assert "bits is 5; it is 8 or 4" in wrong[2]
    assert set(wrong[3:]) == {""}


def test_small_models_come_first_and_what_is_not_there_is_left_out(module, monkeypatch, capsys, tmp_path) -> None:
    group = {"models": ["digits_mlp", "digits_resnet", "absent"], "passes": ["a", "b"]}
    arguments = type("", (), {"only": None, "models": tmp_path, "data": tmp_path})
    assert list(module.pairs([group], arguments)) == [
        ("digits_resnet", "a"), ("digits_resnet", "b"), ("digits_mlp", "a"), ("digits_mlp", "b"),
    ]  # fmt: skip
    assert f"absent: left out, there is no {tmp_path / 'absent.onnx'}" in capsys.readouterr().err


def test_a_figure_of_parts_says_how_many_of_each(module) -> None:
    from onnxopt.report.report import Report, StepReport

    steps = (StepReport("a", 1.0, 1, figures={"n": 3, "executed": {"MatMulNBits": 2, "Gather": 1}}),)
    report = Report({}, {}, passes=(*steps, StepReport("b", 1.5, 1)))
    assert module.figure(report, "executed") == "2 MatMulNBits, 1 Gather"
    assert module.figure(report, "n") == "3"
    assert module.figure(report, "absent") == ""
