"""onnxopt check on the command line: exit codes, options over the policy, reports, errors; the action and the hook."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest

ROOT = Path(__file__).parents[2]
# What takes no time.
QUICK = "structure,external-data,opset,size,provenance"


def test_a_model_that_passes(net: Path, run) -> None:
    done = run("check", net, "--only", QUICK)
    assert (done.code, done.err) == (0, "")
    text = " ".join(done.out.split())
    assert "structure passed 10 nodes, opset 17, IR version 8" in text
    assert "left out: operators, saturation, audit," in text
    assert f"passed: {net} (3 passed, 2 not run)" in text
    assert run("check", net, "--only", QUICK, "--quiet") == (0, "", "")


def test_a_model_that_fails(net: Path, run) -> None:
    net.write_bytes(net.read_bytes()[:-100])
    done = run("check", net)
    assert (done.code, done.err) == (1, "")
    assert "is not an ONNX model, or was cut off" in " ".join(done.out.split())
    assert "(1 failed, 13 not run)" in done.out


def test_options_go_before_the_policy(net: Path, run) -> None:
    policy = net.with_name("edge.toml")
    policy.write_text(f'[checks]\nonly = ["size", "opset"]\n[size]\nmax = {net.stat().st_size}\n[opset]\nort = "1.15"')
    report = net.with_name("r.json")
    assert run("check", net, "--policy", policy, "--report", report, "--quiet").code == 0
    found = json.loads(report.read_text())
    assert [f["check"] for f in found["findings"]] == ["opset", "opset", "size"]
    assert found["policy"]["opset"] == {"ort": "1.15"}
    done = run("check", net, "--policy", policy, "--only", "size", "--ort", "1.2", "--report", report)
    assert done.code == 0
    found = json.loads(report.read_text())
    assert [f["check"] for f in found["findings"]] == ["size"]
    assert found["policy"]["opset"] == {"ort": "1.2"}
    assert found["policy"]["size"] == {"max": net.stat().st_size}
    assert run("check", net, "--policy", policy, "--only", "size", "--skip", "size").code == 2


def test_a_required_device_that_is_away(net: Path, run) -> None:
    """Its report is written all the same."""
    report = net.with_name("r.json")
    options = ("--only", "targets", "--target", "ssh://127.0.0.1:1", "--report", report, "--quiet")
    assert run("check", net, *options).code == 1
    done = run("check", net, *options[:2], *options[4:], "--require-target", "ssh://127.0.0.1:1")
    assert done.code == 4
    assert "a target is required, but was not checked: ssh://127.0.0.1:1" in done.err
    assert [f["status"] for f in json.loads(report.read_text())["findings"]] == ["not run"]


def test_strict(net: Path, run) -> None:
    assert run("check", net, "--only", "structure,size").code == 0
    assert run("check", net, "--only", "structure,size", "--strict").code == 1


def test_every_kind_of_report_at_once(net: Path, run) -> None:
    names = [net.with_name(f"r{suffix}") for suffix in (".json", ".xml", ".sarif", ".md")]
    done = run("check", net, "--only", "operators,size", *(w for n in names for w in ("--report", n)), "--quiet")
    assert done == (0, "", "")
    assert json.loads(names[0].read_text())["schema"] == "onnxopt-check-1"
    assert ElementTree.parse(names[1]).getroot()[0].get("tests") == "2"
    assert json.loads(names[2].read_text())["version"] == "2.1.0"
    assert "❌" not in names[3].read_text()


def test_several_models(net: Path, run) -> None:
    broken = net.with_name("broken.onnx")
    broken.write_text("text")
    done = run("check", net, broken, "--only", QUICK)
    assert done.code == 1
    assert re.findall(r"(passed|failed): ", done.out) == ["passed", "failed"]
    done = run("check", net, broken, "--report", net.with_name("r.json"))
    assert (done.code, done.out) == (2, "")
    assert "a report is about one model" in done.err


def test_the_report_that_accepted_a_model(net: Path, run) -> None:
    made, report = net.with_name("made.onnx"), net.with_name("made.json")
    line = ("optimize", net, "--passes", "fold-bn", "--min-speedup", "0", "-o", made, "--report", report, "--quiet")
    assert run(*line).code == 0
    done = run("check", made, "--accepted", report, "--only", "provenance")
    assert done.code == 0
    assert "says 'accepted'" in " ".join(done.out.split())
    assert "made it by 'freeze-defaults" in " ".join(run("check", made, "--only", "provenance").out.split())
    done = run("check", net, "--accepted", report, "--only", "provenance")
    assert done.code == 1
    assert "is about another file" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["{folder}/nowhere.onnx"], 2, "nowhere.onnx is no file that is there"),
        (["{folder}"], 2, "is a folder: name a file in it"),
        (["{model}", "--policy", "{folder}/no.toml"], 2, "cannot read the policy"),
        (["{model}", "--policy", "{model}"], 2, "is not TOML"),
        (["{model}", "--only", "sise"], 2, "[checks] only: 'sise' is none of the words for it; did you mean 'size'?"),
        (["{model}", "--provider", "gpu"], 2, "[operators] providers: 'gpu' is none of the words"),
        (["{model}", "--ort", "latest"], 2, "'latest' is no release of ONNX Runtime"),
        (["{model}", "--target", "x68"], 2, "no target is named 'x68'"),
        (["{model}", "--data", "nowhere.npz"], 2, "the data 'nowhere.npz' is not there"),
        (["{model}", "--reference", "nowhere.onnx"], 2, "nowhere.onnx is no file that is there"),
        (["{model}", "--report", "r.html"], 2, "--report r.html: end the name in .json"),
        (["{model}", "--report", "{folder}/no/r.json"], 2, "cannot write"),
        (["{model}", "--report", "{folder}/r.md", "--report", "{folder}/r.md"], 2, "written for something else"),
        (["{model}", "--log-file", "{model}"], 2, "--log-file names"),
        (["{model}", "--require-target", "native+armnn"], 4, "'native+armnn' is required, but not available"),
        ([], 2, "Missing argument 'MODEL...'"),
    ],
)
def test_errors(options: list[str], code: int, message: str, net: Path, run) -> None:
    before = net.read_bytes()
    done = run("check", *(o.format(model=net, folder=net.parent) for o in options))
    assert (done.code, done.out) == (code, "")
    assert message in " ".join(done.err.split())
    assert net.read_bytes() == before


def test_a_report_never_replaces_weights(net: Path, run) -> None:
    onnx.save(onnx.load(net), net, save_as_external_data=True, location="w.json", size_threshold=0)
    done = run("check", net, "--report", net.with_name("w.json"))
    assert (done.code, done.out) == (2, "")
    assert "read or written for something else" in done.err


def test_help_shows_examples(run) -> None:
    done = run("check", "--help")
    assert done.code == 0
    assert "onnxopt check model.onnx --policy edge.toml --report check.sarif" in done.out
    assert "4 a required target" in " ".join(done.out.split())


def script_of_the_action() -> str:
    """The shell script that checks, without a reader of YAML."""
    text = (ROOT / "action.yml").read_text()
    block = text[text.index("- name: Check\n") :].split("run: |\n", 1)[1].split("\n    - ", 1)[0]
    return "\n".join(line.removeprefix(" " * 8) for line in block.splitlines())


@pytest.mark.skipif(shutil.which("bash") is None, reason="the action needs bash")
def test_the_script_of_the_action(net: Path, tmp_path: Path) -> None:
    command = tmp_path / "bin" / "onnxopt"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxopt "$@"\n')
    command.chmod(0o755)
    odd = net.with_name("a $(touch evil) b.onnx")
    odd.write_text("no model")
    given = {
        "MODELS": f"{net}\n{odd}\n\n",
        "POLICY": "",
        "ARGUMENTS": f"--only {QUICK}",
        "REPORTS": str(tmp_path / "reports"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "PATH": f"{command.parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script_of_the_action()],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | given,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert sorted(p.name for p in (tmp_path / "reports").iterdir()) == ["1.md", "1.sarif", "2.md", "2.sarif"]
    summary = (tmp_path / "summary.md").read_text()
    assert re.findall("### onnxopt check: . (passed|failed)", summary) == ["passed", "failed"]
    assert set((tmp_path / "output").read_text().split()) == {"sarif=yes"}
    assert not (tmp_path / "evil").exists()


def test_the_action_and_the_hook_are_yaml() -> None:
    import yaml

    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), "what a user gives must not become text of a script"
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert (hook["id"], hook["entry"], hook["files"]) == ("onnxopt-check", "onnxopt check", r"\.onnx$")
