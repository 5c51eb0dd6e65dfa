"""The page: every figure is on it, nothing in it runs, and what models call things stays text."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from onnxopt.errors import OutputError
from onnxopt.report.html import to_html, write_report
from onnxopt.report.json import read_json
from onnxopt.report.plot import HEIGHT, WIDTH, plot
from onnxopt.report.report import (
    Cause,
    FileInfo,
    LayerNoise,
    OutputQuality,
    Remedy,
    Report,
    StepReport,
    TargetResult,
    Validation,
)

EVIL = "<script>alert('x')</script>&\"<img src=x onerror=alert(1)>"
FIGURES = {
    "channels": {"conv1": [32, 24], EVIL: [64, 64]},
    "curve": [[0.0, 0.0], [0.1, 0.002], [0.25, 0.01]],
    "groups": [
        {"makers": [f"m{i}" for i in range(8)], "readers": ["r"], "channels": 32, "classes": 16, "kept": 24, "why": ""},
        {"makers": ["last"], "readers": [], "channels": 10, "classes": 0, "kept": 10, "why": "it is an output"},
    ],
    "frozen": [{"why": "own.Odd 'n' has no rule", "layers": [EVIL], "parameters": 1234}],
    "proof": 1.25e-7,
    "repaired": [{"layer": EVIL, "before": 0.2, "after": 0.1}],
    "check": {"scores": math.inf},
    "notes": ["of the pass"],
}


@pytest.fixture(scope="module")
def report(report: Report, validation: Validation) -> Report:
    outputs = (validation.outputs[0], OutputQuality(EVIL, math.inf, 1.0, math.nan, 0.99))
    return replace(
        report,
        passes=(StepReport("fold-bn", 0.1, 3), StepReport("prune", 1.5, 7, ((EVIL, "first"), ("b", "last")), FIGURES)),
        output=FileInfo("b.onnx", "1c1d", 300, 200, 1000),
        validation=(replace(validation, outputs=outputs),),
    )


def tree(report: Report) -> ElementTree.Element:
    return ElementTree.fromstring(to_html(report))


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def rows(report: Report) -> list[list[str]]:
    return [[text_of(cell) for cell in row] for row in tree(report).iter("tr")]


def test_every_gate_and_figure_shows(report: Report) -> None:
    found, text = rows(report), text_of(tree(report))
    assert ["max-drop", "holds", "0.5 points lost"] in found
    assert ["min-speedup", "fails", "3 wanted"] in found
    assert ["other", "not judged", "nothing to judge"] in found
    assert ["size", "1.00 kB", "300 bytes", "30 %"] in found
    assert ["accuracy", "81.0 %", "80.5 %", "-0.5 points"] in found
    assert ["scores", "", "28.4 dB", "largest error 0.1"] in found
    assert ["conv1", "", "24 of 32"] in found
    assert ["last", "", "10", "", "10", "it is an output"] in found
    assert found[[r[1:3] for r in found].index(["r", "32"])][2:] == ["32", "16", "24", ""]
    assert ["own.Odd 'n' has no rule", EVIL, "1.23 k"] in found
    assert [EVIL, "0.2", "0.1"] in found
    assert ["1", "first", EVIL] in found
    for words in (
        "accepted: saved as b.onnx", "2.00 x", "4.00 k → 1.00 k", "m0, m1, m2 + 5 more", "m6, m7", "proof 1.25e-07",
        '"scores": "Infinity"', "of the pass", "of the run", "of the validation", "3 changed, 0 left alone, 0.1 s",
        "cpu fast one", "instructions avx, vnni", "memory 8.00 GB", "onnx 1.23", "sha256 1c1d",
    ):  # fmt: skip
        assert words in text


def test_names_are_text(report: Report) -> None:
    page = to_html(report)
    elements = {e.tag for e in ElementTree.fromstring(page).iter()}
    assert elements.isdisjoint({"script", "img", "link", "iframe"})
    assert page.count("&lt;script&gt;") == 6
    assert re.findall(r"\b(?:src|href|on\w+)=", re.sub(r"&lt;.*?&gt;", "", page)) == []
    assert "default-src 'none'" in page


def test_the_page_is_html_as_well(report: Report) -> None:
    class Balanced(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.stack: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.stack.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            assert tag in ("meta", "rect", "line", "path", "polyline")

        def handle_endtag(self, tag: str) -> None:
            assert self.stack.pop() == tag

    page = to_html(report)
    parser = Balanced()
    parser.feed(page)
    assert parser.stack == []
    assert page.startswith("<!DOCTYPE html>")


def test_characters_that_no_page_can_hold(report: Report) -> None:
    odd = replace(report, notes=("a\x00b\x1b[31mc\udcffd\uffff é 漢 😀",))
    assert "a�b�[31mc�d� é 漢 😀" in text_of(tree(odd))


def test_what_is_missing_is_not_shown(report: Report, validation: Validation) -> None:
    bare = text_of(tree(Report({}, {})))
    for words in ("Gates", "Passes", "Notes", "Original"):
        assert words not in bare
    plain = replace(report, passes=(StepReport("prune", 1.0, 0, figures={"channels": 5, "curve": [[0, 0]]}),))
    text = text_of(tree(plain))
    for words in ("Channels kept", "Predicted error", "go together", "left alone ("):
        assert words not in text
    rejected = replace(report, output=None, verdict="rejected", validation=(replace(validation, accuracy=None),))
    assert ["size", "1.00 kB", "", ""] in rows(rejected)
    assert "same top answer 98.5 % of 500 samples" in text_of(tree(rejected))


def test_targets_causes_and_how_to_do_it_again(report: Report) -> None:
    cause = Cause(EVIL, "pairs overflow", (Remedy("made for avx2", "0.3 dB"), Remedy("nothing", "")))
    found = (
        TargetResult("x86-64-avx2", "masked", "failed", "68 % agree", 100, 12.0, causes=(cause,), departure="conv1"),
        TargetResult("x86-64-avx512", "masked", "failed", "", 100, 12.0, causes=(cause,)),
        TargetResult("arm64-cortex-a53", "emulated", "not checked", EVIL),
    )
    line = f"onnxopt validate a b --data '{EVIL}'"
    page = tree(replace(report, targets=found, reproduce=(line,), layers=(LayerNoise("t1", 30.0),)))
    states = [(e.get("class"), text_of(e)) for e in page.iter("span") if str(e.get("class")).startswith("state")]
    assert states == [("state failed", "failed")] * 2 + [("state unchecked", "not checked")]
    text = text_of(page)
    assert "x86-64-avx2 68 % agree; departs first in conv1" in text
    assert f"arm64-cortex-a53 {EVIL}" in text
    assert text.count("pairs overflow") == 1  # once, for both
    assert "on x86-64-avx2, x86-64-avx512 made for avx2 price: 0.3 dB nothing" in text
    assert [text_of(e) for e in page.iter("pre") if e.get("class") == "command"] == [line]
    assert ["t1", "", "30.0 dB"] in [[text_of(cell) for cell in row] for row in page.iter("tr")]


def test_pairs_of_bars(report: Report) -> None:
    page = tree(report)
    bars = [float(str(r.get("width"))) for r in page.iter("rect") if r.get("class") in ("before", "after kept")]
    assert bars == [100.0, 30.0, 100.0, 80.0, 100.0, 25.0, 100.0, 50.0, 100.0, 50.0]


def test_bars_and_curve(report: Report) -> None:
    page = tree(report)
    assert [r.get("width") for r in page.iter("rect") if r.get("class") == "kept"] == ["75.0", "100.0"]
    (line,) = page.iter("polyline")
    points = [tuple(map(float, p.split(","))) for p in str(line.get("points")).split()]
    found = plot([(0.0, 0.0), (0.1, 0.002), (0.25, 0.01)])
    assert points == list(found.points)
    assert "25.0 % saved, error 0.01" in text_of(page)
    assert len(list(page.iter("circle"))) == 3
    long = replace(report, passes=(StepReport("prune", 1.0, 1, figures={"curve": [[i / 60, i] for i in range(60)]}),))
    assert len(list(tree(long).iter("circle"))) == 1  # points would hide the line


@pytest.mark.parametrize(
    ("points", "across", "up"),
    [
        ([(0, 0), (0.25, 0.01)], [0, 0.05, 0.1, 0.15, 0.2, 0.25], [0, 0.002, 0.004, 0.006, 0.008, 0.01]),
        ([(0, 0), (0, 0)], [0, 0.2, 0.4, 0.6, 0.8, 1], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ([(-0.05, 0), (0.4, 3e-9)], [-0.1, 0, 0.1, 0.2, 0.3, 0.4], [0, 1e-9, 2e-9, 3e-9]),
    ],
)
def test_ticks_are_round_and_hold_every_point(
    points: list[tuple[float, float]], across: list[float], up: list[float]
) -> None:
    found = plot(points)
    assert [t.value for t in found.across] == pytest.approx(across)
    assert [t.value for t in found.up] == pytest.approx(up)
    assert found.points[0][0] == pytest.approx(found.left if points[0][0] == 0 else 119, abs=0.5)
    assert all(found.left <= x <= found.right < WIDTH and 0 < found.top <= y <= found.bottom for x, y in found.points)
    assert found.bottom < HEIGHT


def test_the_name_says_what_is_written(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "r.HTML")
    assert (tmp_path / "r.HTML").read_text(encoding="utf-8") == to_html(report)
    for name in ("r.json", "r.txt", "r"):
        write_report(report, tmp_path / name)
        assert read_json(tmp_path / name).verdict == "accepted"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r", "r.HTML", "r.json", "r.txt"]
    with pytest.raises(OutputError, match=r"cannot write the report .*r\.html: .*; choose another place with --report"):
        write_report(report, tmp_path / "no" / "r.html")
