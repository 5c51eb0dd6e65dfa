"""onnxopt targets list"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from onnxopt.runtime.target import ALIASES, GROUPS
from onnxopt.targets import overview


def test_every_target_is_listed_with_its_aliases_and_groups(run) -> None:
    done = run("targets", "list")
    assert (done.code, done.err) == (0, "")
    rows = re.findall(r"^ ?([a-z0-9-]+)  ", done.out, re.MULTILINE)
    assert set(rows) >= {target.name for target in GROUPS["all"]} | set(GROUPS)
    assert all(alias in done.out for alias in ALIASES)
    assert re.search(r"native +this machine +natively", done.out)
    assert "Runtime has it: native with +acl, +armnn, " in done.out
    assert "A real device: ssh://user@host:port?python=python3&threads=4" in done.out


def test_what_is_missing_says_why_and_what_to_do(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = run("targets", "list")
    assert done.code == 0
    head, _, missing = done.out.partition("Not available here")
    assert "arm64" not in head
    row = r"arm64-cortex-a53 +it is not set up on this machine +run 'onnxopt targets setup arm64'"
    assert re.search(row, missing)


def test_as_json(run, tmp_path: Path) -> None:
    report = tmp_path / "targets.json"
    assert run("targets", "list", "--report", report).code == 0
    found = json.loads(report.read_text())
    assert found["schema"] == "onnxopt-targets-1"
    assert found["groups"] == {name: [t.name for t in members] for name, members in GROUPS.items()}
    lines = {line["name"]: line for line in found["targets"]}
    assert lines["native"] == {
        **{"name": "native", "aliases": [], "device": "this machine", "available": True},
        **{"how": "natively", "why": "", "remedy": ""},
    }
    assert lines["arm64-cortex-a72"]["aliases"] == ["raspberrypi4"]
    assert all(line["available"] == bool(line["how"]) != bool(line["why"]) for line in lines.values())


def test_a_report_that_cannot_be_written(run, tmp_path: Path) -> None:
    done = run("targets", "list", "--report", tmp_path / "no/folder/t.json")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_installed_execution_providers_are_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview.session, "providers", lambda: ("XnnpackExecutionProvider", "CPUExecutionProvider"))
    (line,) = [line for line in overview.overview() if "+" in line.name]
    assert (line.name, line.how, line.available) == ("native+xnnpack", "natively, XnnpackExecutionProvider first", True)
