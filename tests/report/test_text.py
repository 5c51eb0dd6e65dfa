"""What people read: the right figures, nothing lost on a narrow terminal, names taken literally."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from onnxopt.core.spec import Option
from onnxopt.graph.cost import OperatorCost
from onnxopt.report.execution import Execution, Product, Step
from onnxopt.report.html import to_html
from onnxopt.report.inspection import Inspection, Prospect
from onnxopt.report.report import (
    Report,
    StepReport,
    Validation,
    Verdict,
)
from onnxopt.report.tables import Bar
from onnxopt.report.text import PassLine, render, render_execution, render_inspection, render_passes


def shown(renderable: RenderableType, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(renderable)
    return out.getvalue()


def lines(renderable: RenderableType, width: int = 140) -> list[list[str]]:
    """Each line cut into cells: two spaces or more stand between them."""
    return [[c.strip() for c in line.split("  ") if c.strip()] for line in shown(renderable, width).splitlines()]


def test_all_figures_are_there(report: Report) -> None:
    found = lines(render(report))
    assert ["fold-bn", "3", "0", "0.1 s"] in found
    assert ["prune:ratio=0.3", "7", "6", "1.5 s", "kept 0.712, bits 8"] in found
    assert ["file", "a.onnx", "b.onnx"] in found
    assert ["size", "1.00 kB", "300 bytes", "30 %"] in found
    assert ["parameters", "250", "200", "80 %"] in found
    assert ["MACs", "4.00 k", "?"] in found
    assert ["accuracy", "81.0 %", "80.5 %", "-0.5 points"] in found
    latency = ["latency, batch 1, 1 thread", "2.00 ms (1.9 to 2.1)", "1.00 ms (0.9 to 1.1)", "2.00 x (1.95 to 2.05)"]
    assert latency in found
    assert ["peak memory", "10.0 MB", "5.00 MB", "50 %"] in found
    assert ["same top answer", "98.5 %"] in found
    assert ["signal to noise", "28.4 dB", "cosine 0.99912"] in found
    assert ["scores", "28.4 dB", "largest error 0.1"] in found
    assert ["best", "20.0 dB", "99.0 % equal"] in found
    assert ["max-drop", "holds", "0.5 points lost"] in found
    assert ["min-speedup", "fails", "3 wanted"] in found
    assert ["other", "not judged", "nothing to judge"] in found


def test_notes_come_once(report: Report) -> None:
    text = shown(render(report))
    assert text.count("note: of the run") == 1
    assert text.count("note: of the validation") == 1


def test_notes_of_a_pass_are_notes(report: Report) -> None:
    step = StepReport("quant", 0.1, 3, figures={"notes": ["too few samples", "of the run"]})
    text = shown(render(replace(report, passes=(step,))))
    assert text.count("note: too few samples") == 1
    assert text.count("note: of the run") == 1


def test_skips_by_reason(report: Report) -> None:
    found = lines(render(report))
    assert ["left alone by prune:ratio=0.3"] in found
    assert ["5", "shares its channels", "conv0, conv1, conv2, and 2 more"] in found
    assert ["1", "last layer", "[red]x[/red]"] in found  # a name, not markup
    assert ["5", "shares its channels", "conv0, conv1, conv2, conv3, conv4"] in lines(render(report, verbose=True))


def test_what_was_cut_but_not_repaired_is_not_left_alone(report: Report) -> None:
    skips = (("a", "last layer"), ("b", "not repaired: it pads automatically"))
    report = replace(report, passes=(StepReport("prune", 1.0, 3, skips),))
    found, page = lines(render(report)), to_html(report)
    assert ["prune", "3", "1", "1.0 s"] in found
    tables = [i for i, row in enumerate(found) if row in (["left alone by prune"], ["cut, but not repaired, by prune"])]
    assert found.index(["1", "last layer", "a"]) in range(*tables)
    assert found.index(["1", "not repaired: it pads automatically", "b"]) > tables[1]
    assert "3 changed, 1 left alone, 1 cut, but not repaired, 1.0 s" in page
    assert "left alone (1)" in page
    assert "cut, but not repaired (1)" in page
    assert "not repaired" not in to_html(replace(report, passes=(StepReport("prune", 1.0, 3, skips[:1]),)))


def test_one_output_is_shown_only_when_asked_for(report: Report, validation: Validation) -> None:
    one = replace(report, validation=(replace(validation, outputs=validation.outputs[:1], threads=4),))
    assert "largest error" not in shown(render(one))
    assert "largest error" in shown(render(one, verbose=True))
    assert "4 threads" in shown(render(one))


def test_what_was_not_measured_is_not_shown(report: Report, validation: Validation) -> None:
    bare = replace(validation, agreement=None, accuracy=None, peak_memory_bytes=None, sqnr_db=math.inf)
    text = shown(render(replace(report, validation=(bare,))))
    assert "accuracy" not in text
    assert "peak memory" not in text
    assert "same top answer" not in text
    assert ["signal to noise", "equal", "cosine 0.99912"] in lines(render(replace(report, validation=(bare,))))


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        ("accepted", "accepted: saved as b.onnx"),
        ("forced", "forced: saved as b.onnx, although min-speedup fails"),
        ("rejected", "rejected: min-speedup fails; nothing was saved"),
        ("not validated", "not validated: saved as b.onnx"),
        ("not judged", "not judged"),
    ],
)
def test_the_verdict_is_the_last_line(report: Report, verdict: Verdict, line: str) -> None:
    assert shown(render(replace(report, verdict=verdict))).splitlines()[-1] == line


def test_a_result_that_is_the_original_says_so(report: Report) -> None:
    idle = replace(report, passes=(StepReport("quant", 0.1, 0),))
    last = "saved as b.onnx, which is the original: no pass changed anything"
    assert shown(render(idle)).splitlines()[-1] == f"accepted: {last}"
    assert shown(render(replace(idle, verdict="not validated"))).splitlines()[-1] == f"not validated: {last}"
    rejected = replace(idle, verdict="rejected", output=None)
    assert shown(render(rejected)).splitlines()[-1] == "rejected: min-speedup fails; nothing was saved"
    twice = replace(rejected, gates=tuple(replace(g, holds=False) for g in report.gates))
    assert shown(render(twice)).splitlines()[-1] == "rejected: max-drop, min-speedup, other fail; nothing was saved"


def test_a_comparison_of_two_files_saves_nothing(report: Report) -> None:
    holds = replace(report, passes=(), gates=report.gates[:1])
    assert shown(render(holds)).splitlines()[-1] == "accepted: every gate holds"
    failed = replace(holds, gates=report.gates[1:2], verdict="rejected")
    assert shown(render(failed)).splitlines()[-1] == "rejected: min-speedup fails"
    assert "left alone" not in shown(render(failed))


def test_a_rejected_result_has_no_file(report: Report) -> None:
    assert ["size", "1.00 kB"] in lines(render(replace(report, output=None, verdict="rejected")))
    assert shown(render(Report({}, {}))) == "not judged\n"


def test_narrow_terminals_lose_nothing(report: Report) -> None:
    text = shown(render(report), 60).replace("\n", " ")
    for word in ("conv2", "28.4", "2.05)", "min-speedup", "0.99912"):
        assert word in text


def test_inspections(report: Report) -> None:
    conv = OperatorCost("Conv", 19, 267_696, 1_070_784, 40_550_400)
    relu = OperatorCost("Relu", 19, 0, 0, 0)
    total = OperatorCost("total", 38, 267_696, 1_070_784, 81_100_800)
    found = Inspection(
        path="m.onnx",
        producer="maker 1",
        opsets={"ai.onnx": 17, "own": 1},
        inputs=("x: float32[N,3]", "mask: bool[N]"),
        outputs=("y: float32[N,10]",),
        total=total,
        operators=(conv, relu),
        passes=(
            Prospect("prune", False, 8, report.passes[1].skips),
            Prospect("clean", True, 0),
            Prospect("svd", False, 0, failed="cannot"),
        ),
        notes=("made-up data",),
    )
    cells = lines(render_inspection(found))
    assert ["opset", "ai.onnx 17, own 1"] in cells
    assert ["input", "x: float32[N,3]"] in cells
    assert ["mask: bool[N]"] in cells
    assert ["Conv", "19", "268 k", "1.07 MB", "40.6 M", "50 %"] in cells
    assert ["Relu", "19"] in cells
    assert ["prune", "lossy", "8", "6"] in cells
    assert ["clean", "exact", "0", "0"] in cells
    assert ["svd", "lossy", "0", "0", "cannot"] in cells
    assert ["5", "shares its channels", "conv0, conv1, conv2, and 2 more"] in cells
    assert "conv4" in shown(render_inspection(found, verbose=True))
    assert "note: made-up data" in shown(render_inspection(found))


def test_the_list_of_passes() -> None:
    ratio = Option("ratio", "number", "0.3", "share that goes")
    found = lines(
        render_passes([PassLine("prune", "Removes channels.", False, [ratio]), PassLine("clean", "Tidies.", True, [])])
    )
    assert ["prune (lossy)", "Removes channels."] in found
    assert ["ratio", "number", "0.3", "share that goes"] in found
    assert ["clean (exact)", "Tidies."] in found


EXECUTION = Execution(
    path="folder/m.onnx",
    rules="arm",
    versions={},
    integer_share=0.75,
    integer=1,
    islands=2,
    folded=1,
    uncounted=1,
    quantizations=2,
    dequantizations=3,
    operators={"QLinearConv": 1, "Add": 4},
    products=(
        Product("[red]a", "Conv", "integer", "QLinearConv", 300, 0.75, "", ""),
        Product("b", "Gemm", "float", "FusedGemm", 100, 0.25, "its bias is float", "give it as int32"),
        Product("c", "LSTM", "float", "LSTM", None, None, "no kernel", ""),
        Product("d", "MatMul", "folded", "", 64, None, "", ""),
    ),
    steps=(Step("q", "QuantizeLinear", True),),
)


def test_executions() -> None:
    cells = lines(render_execution(EXECUTION))
    assert ["[red]a", "Conv", "QLinearConv", "75.0 %"] in cells
    assert ["b", "Gemm", "float", "25.0 %", "its bias is float", "give it as int32"] in cells
    assert ["c", "LSTM", "float", "?", "no kernel"] in cells
    assert ["d", "MatMul", "folded"] in cells
    assert ["model", "m.onnx"] in cells
    assert ["rules", "arm"] in cells
    assert ["MACs in integer kernels", "75.0 %"] in cells
    assert ["products", "1 integer, 2 float, 1 folded into constants, 1 of unknown MACs"] in cells
    assert ["left as conversions", "2 quantizations, 3 dequantizations"] in cells
    assert "Executed" not in shown(render_execution(EXECUTION))
    assert ["Add", "4"] in lines(render_execution(EXECUTION, verbose=True))


@pytest.mark.parametrize(
    ("share", "least", "line"),
    [
        (0.75, 0.75, "holds: 75.0 % of the MACs in integer kernels wanted"),
        (0.75, 0.8, "fails: 80.0 % of the MACs in integer kernels wanted"),
        (None, 0.1, "fails: 10.0 % of the MACs in integer kernels wanted"),
    ],
)
def test_a_least_share_of_integers(share: float | None, least: float, line: str) -> None:
    found = replace(EXECUTION, integer_share=share)
    assert shown(render_execution(found, min_integer=least)).splitlines()[-1] == line


def test_what_a_quantized_candidate_executes_is_one_line(report: Report, validation: Validation) -> None:
    quantized = replace(validation, integer_share=0.991, islands=3, conversions=2)
    row = ["MACs in integer kernels", "99.1 %", "3 products float, 2 conversions left"]
    assert row in lines(render(replace(report, validation=(quantized,))))
    assert "integer kernels" not in shown(render(report))


def test_lists_of_records_are_tables(report: Report) -> None:
    tried = [{"step": f"repair {i}", "after_db": 30.123456 + i, "kept": i % 2 == 0} for i in range(10)]
    report = replace(report, passes=(StepReport("quant", 1.0, 3, (), {"repairs": tried, "samples": [1, 2]}),))
    lines = shown(render(report))
    assert "repairs by quant" in lines
    assert "repair 7" in lines
    assert "and 2 more" in lines
    assert "37.12" in lines
    assert "repair 9" in shown(render(report, verbose=True))
    assert "[1, 2]" not in lines


CUT = {
    "channels": {f"conv{i}": [32, 32 - 2 * i] for i in range(10)} | {"[red]": [8, 1]},
    "curve": [[i / 40, i * i / 1000] for i in range(21)],
    "groups": [
        {"makers": [f"m{i}" for i in range(8)], "readers": ["r"], "channels": 32, "classes": 16, "kept": 24, "why": ""},
        {"makers": ["whole"], "readers": ["s"], "channels": 16, "classes": 16, "kept": 16, "why": ""},
        {"makers": ["last"], "readers": [], "channels": 10, "classes": 0, "kept": 10, "why": "it is an output"},
    ],
    "frozen": [{"why": "own.Odd 'n' has no rule", "layers": ["a", "b", "c", "d"], "parameters": 1234}],
    "repaired": [{"layer": "z", "before": 0.2}],
}


def test_what_a_step_removed(report: Report) -> None:
    report = replace(report, passes=(StepReport("prune", 1.0, 3, (), CUT),))
    found = lines(render(report))
    assert ["channels kept by prune"] in found
    assert ["conv0", "█" * 24, "32 of 32"] in found
    assert ["conv4", "█" * 18 + "░" * 6, "24 of 32"] in found
    assert ["and 3 more"] in found
    assert ["12.5 %", "█" * 6 + "░" * 18, "0.025"] not in found
    assert ["0.0 %", "░" * 24, "0"] in found
    assert ["50.0 %", "█" * 24, "0.4"] in found
    assert sum(len(row) == 3 and row[0].endswith("%") and "░" in row[1] for row in found) == 7
    assert ["made by", "read by", "channels", "in classes", "kept"] in found
    assert ["m0, m1, m2 + 5 more", "r", "32", "16", "24"] in found
    assert not any(row[:1] in (["whole"], ["last"]) for row in found)
    assert ["own.Odd 'n' has no rule", "a, b, c + 1 more", "1.23 k"] in found
    assert ["repaired by prune"] in found
    everything = lines(render(report, verbose=True))
    assert ["[red]", "█" * 3 + "░" * 21, "1 of 8"] in everything
    assert ["25.0 %", "█" * 6 + "░" * 18, "0.1"] in everything
    assert ["last", "10", "10", "it is an output"] in everything
    assert ["own.Odd 'n' has no rule", "a, b, c, d", "1.23 k"] in everything


@pytest.mark.parametrize(
    ("budget", "saved"), [("macs", "MACs"), ("params", "parameters"), ("size", "bytes"), ("latency", "time")]
)
def test_a_curve_says_what_is_saved(report: Report, budget: str, saved: str) -> None:
    figures = {"budget": budget, "curve": [[0, 0], [0.3, 0.2], [0.25, 0.1]]}
    report = replace(report, passes=(StepReport("prune", 1.0, 3, (), figures),))
    found = lines(render(report))
    assert [f"predicted error by {saved} saved, of prune"] in found
    assert [f"{saved} saved", "error"] in found
    assert [row[0] for row in found if len(row) == 3 and row[0] in ("0.0 %", "25.0 %", "30.0 %")] == [
        "0.0 %", "25.0 %", "30.0 %",
    ]  # fmt: skip
    page = to_html(report)
    assert f"Predicted error by {saved} saved" in page
    assert f"share of the {saved} saved" in page


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"channels": {}, "curve": [], "groups": [], "frozen": []},
        {"channels": {"a": [0, 0]}, "curve": [[0, 0]], "groups": 3, "frozen": [1]},
        {"channels": {"a": [1, 2]}, "curve": [[0, "Infinity"], [0.1, "NaN"]], "groups": [{"makers": ["a"]}]},
        {"channels": "many", "curve": [1, 2], "frozen": [{"why": "w"}]},
    ],
)
def test_figures_of_another_form_are_not_drawn(report: Report, figures: dict[str, object]) -> None:
    text = shown(render(replace(report, passes=(StepReport("prune", 1.0, 3, (), figures),))))
    for title in ("channels kept", "predicted error", "go together", "channels that stay"):
        assert title not in text
    assert "groups by prune" in text or not isinstance(figures.get("groups"), list) or not figures["groups"]


def test_bars_where_only_ascii_can_be_written() -> None:
    options = Console(file=io.StringIO()).options.update()
    options.encoding = "ascii"
    drawn = [
        "".join(s.text for s in Bar(share).__rich_console__(Console(), options)) for share in (0, 0.001, 0.5, 0.999, 1)
    ]
    assert [d.count("#") for d in drawn] == [0, 1, 12, 23, 24]
    assert all(set(d) <= {"#", "."} and len(d) == 24 for d in drawn)
