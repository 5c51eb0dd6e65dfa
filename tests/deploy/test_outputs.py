"""Findings as text, JSON, JUnit, SARIF and Markdown: everything is in them, and nothing in a name has any effect."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from onnxopt.deploy.finding import CheckReport, Finding, ModelFile
from onnxopt.deploy.junit import junit
from onnxopt.deploy.markdown import escape, markdown
from onnxopt.deploy.printable import figure, printable
from onnxopt.deploy.run import CHECKS
from onnxopt.deploy.sarif import sarif
from onnxopt.deploy.text import render
from onnxopt.deploy.write import check_kind, write_check
from onnxopt.errors import OutputError, SpecError

RULES = {c.name: c.does for c in CHECKS}
NASTY = (
    "\x1b[31m\x00]]></failure><script>alert(1)</script>|`*[a](https://x)@team #1 \u202egnp \ud800 \n::error::\r\u2028"
)
# A file name may hold any bytes; those that are not UTF-8 come as low surrogates.
PATH = NASTY.replace("\ud800", "\udcff") + ".onnx"


def report(*findings: Finding, path: str = "models/m.onnx") -> CheckReport:
    verdict = "failed" if any(f.status == "failed" for f in findings) else "passed"
    file = ModelFile(path, "ab" * 32, 1234)
    return CheckReport(file, verdict, findings, ("targets",), {}, {"onnxopt": "0.1"}, {}, 1.5)  # type: ignore[arg-type]


GOOD = Finding("structure", "passed", "3 nodes", places=("unseen",))
BAD = Finding("size", "failed", "2 MB, 1 MB allowed", 2e6, 1_000_000, ("conv1", "conv2", "conv3", "conv4"), "cut it")
WORSE = Finding("size", "failed", "and again")
UNKNOWN = Finding("memory", "not run", "no limit is given", remedy="give [memory] max")
ALL = report(GOOD, BAD, WORSE, UNKNOWN)
EVIL = report(Finding("operators", "failed", NASTY, NASTY, None, (NASTY,), NASTY), path=PATH)


def text(found: CheckReport, verbose: bool = False) -> str:
    console = Console(width=300, color_system=None)
    with console.capture() as capture:
        console.print(render(found, verbose=verbose))
    return capture.get()


def test_text() -> None:
    shown = text(ALL)
    assert re.search(r"structure +passed +3 nodes +\n", shown)
    assert "2 MB, 1 MB allowed [conv1, conv2, conv3, and 1 more]" in shown
    assert "[conv1, conv2, conv3, conv4]" in text(ALL, verbose=True)
    assert "left out: targets" in shown
    assert "failed: models/m.onnx (1 passed, 2 failed, 1 not run)" in shown
    assert "passed: models/m.onnx (1 not run; nothing was checked)" in text(report(UNKNOWN))


def test_junit() -> None:
    root = ElementTree.fromstring(junit(ALL).encode())
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped", "time")} == {
        "tests": "4",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
        "time": "1.500",
    }
    assert [(c.get("classname"), c.get("name"), c[0].tag) for c in suite] == [
        ("onnxopt.check.structure", "structure", "system-out"),
        ("onnxopt.check.size", "size", "failure"),
        ("onnxopt.check.size", "size 2", "failure"),
        ("onnxopt.check.memory", "memory", "skipped"),
    ]
    failure = suite[1][0]
    assert failure.attrib == {"message": "2 MB, 1 MB allowed", "type": "size"}
    assert (failure.text or "").splitlines() == [
        "measured: 2e+06",
        "limit: 1000000",
        "where: conv1, conv2, conv3, conv4",
        "what to do: cut it",
    ]
    assert suite[3][0].get("message") == "no limit is given"


def test_sarif() -> None:
    found = json.loads(sarif(ALL, RULES))
    assert (found["version"], found["$schema"].rsplit("/", 1)[-1]) == ("2.1.0", "sarif-schema-2.1.0.json")
    (run,) = found["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "onnxopt"
    assert [rule["id"] for rule in driver["rules"]] == list(RULES)
    assert run["artifacts"] == [
        {"location": {"uri": "models/m.onnx"}, "length": 1234, "hashes": {"sha-256": "ab" * 32}}
    ]
    assert run["automationDetails"] == {"id": "onnxopt/models/m.onnx/"}
    first, second = run["results"]
    assert (first["level"], first["ruleId"], driver["rules"][first["ruleIndex"]]["id"]) == ("error", "size", "size")
    assert first["message"] == {"text": "2 MB, 1 MB allowed. Cut it."}
    (location,) = first["locations"]
    assert location["physicalLocation"]["artifactLocation"] == {"uri": "models/m.onnx", "index": 0}
    assert location["physicalLocation"]["region"] == {"startLine": 1}
    assert [place["name"] for place in location["logicalLocations"]] == ["conv1", "conv2", "conv3", "conv4"]
    assert "logicalLocations" not in second["locations"][0]
    assert first["partialFingerprints"] != second["partialFingerprints"]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is True
    (notice,) = invocation["toolExecutionNotifications"]
    assert (notice["level"], notice["associatedRule"]) == ("note", {"id": "memory"})
    assert notice["message"] == {"text": "no limit is given. Give [memory] max."}


def test_sarif_names_a_place_once() -> None:
    twice = Finding("size", "failed", "too large", places=("Abs", "Abs", "Neg"))
    (result,) = json.loads(sarif(report(twice), RULES))["runs"][0]["results"]
    assert [place["name"] for place in result["locations"][0]["logicalLocations"]] == ["Abs", "Neg"]


def test_sarif_names_a_file_elsewhere_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def uri(path: Path) -> str:
        content = json.loads(sarif(report(path=str(path)), RULES))
        return str(content["runs"][0]["artifacts"][0]["location"]["uri"])

    assert uri(tmp_path / "a" / "m 1%.onnx") == "a/m%201%25.onnx"
    assert uri(tmp_path.parent / "m.onnx") == f"file://{tmp_path.parent}/m.onnx"


def test_sarif_names_a_file_of_any_bytes() -> None:
    uri = json.loads(sarif(EVIL, RULES))["runs"][0]["artifacts"][0]["location"]["uri"]
    assert uri.isascii()
    assert unquote(uri, errors="surrogateescape") == str(Path(PATH))


def test_markdown() -> None:
    lines = markdown(ALL).splitlines()
    assert lines[0] == "### onnxopt check: ❌ failed"
    assert "| structure | ✅ passed | 3 nodes |  |" in lines
    assert "| size | ❌ failed | 2 MB, 1 MB allowed: conv1, conv2, conv3, conv4 | cut it |" in lines
    assert "| memory | ⚠️ not run | no limit is given | give \\[memory\\] max |" in lines
    assert "Left out: targets." in lines
    many = report(Finding("audit", "failed", "float", places=tuple("abcdefghij")))
    assert "float: a, b, c, d, e, f, g, h, and 2 more" in markdown(many)


def test_json(tmp_path: Path) -> None:
    write_check(ALL, tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["schema"], found["verdict"], found["left_out"]) == ("onnxopt-check-1", "failed", ["targets"])
    assert found["findings"][1] == {
        "check": "size",
        "status": "failed",
        "why": "2 MB, 1 MB allowed",
        "measured": 2e6,
        "limit": 1_000_000,
        "places": ["conv1", "conv2", "conv3", "conv4"],
        "remedy": "cut it",
        "because": "",
    }


def test_the_end_of_the_name_tells_the_kind(tmp_path: Path) -> None:
    starts = {".json": "{", ".xml": "<?xml", ".SARIF": "{", ".md": "###"}
    for suffix, start in starts.items():
        write_check(EVIL, tmp_path / f"r{suffix}")
        assert (tmp_path / f"r{suffix}").read_text().startswith(start)
    with pytest.raises(SpecError, match=r"--report r\.html: end the name in \.json, \.xml \(JUnit\), \.sarif or \.md"):
        check_kind(Path("r.html"))
    with pytest.raises(OutputError, match="cannot write the report"):
        write_check(ALL, tmp_path / "nowhere" / "r.json")


@pytest.mark.parametrize("form", [text, junit, markdown, lambda r: sarif(r, RULES)])
def test_names_have_no_effect(form: Callable[[CheckReport], str]) -> None:
    content = form(EVIL)
    for harm in ("\x1b", "\x00", "\r", "\u202e", "\u2028", "\ud800", "\udcff", "\n::error::"):
        assert harm not in content
    content.encode()


def test_markup_in_names_stays_text() -> None:
    assert "<script" not in markdown(EVIL)
    assert "<script" not in junit(EVIL)
    assert markdown(EVIL).count("\n|") == 3  # head, rule, one finding
    (failure,) = ElementTree.fromstring(junit(EVIL).encode()).iter("failure")
    assert failure.get("message") == printable(NASTY)
    assert escape("a|b *c* <d> @e #1 https://f `g` [h](i)") == (
        "a\\|b \\*c\\* &lt;d&gt; @\u2060e #\u20601 https://\u2060f \\`g\\` \\[h\\](i)"
    )


def test_printable() -> None:
    assert printable("conv_1 ä 層") == "conv_1 ä 層"
    assert printable("\x1b[0m\n\ud800") == "\\x1b[0m\\n\\ud800"
    assert len(printable("x" * 10_000)) == 603
    assert (figure(None), figure(0.123456789), figure(3), figure(True), figure("a\n")) == (
        "",
        "0.123457",
        "3",
        "True",
        "a\\n",
    )


@given(st.text(st.characters(codec=None, categories=("L", "M", "N", "P", "S", "Z", "C"))))
def test_any_text_goes_into_every_kind(name: str) -> None:
    found = report(Finding("size", "failed", name, name, name, (name,), name))
    ElementTree.fromstring(junit(found).encode())
    (result,) = json.loads(sarif(found, RULES))["runs"][0]["results"]
    assert result["locations"][0]["logicalLocations"][0]["name"] == printable(name)
    assert len([line for line in markdown(found).splitlines() if line.startswith("| size")]) == 1
