"""validate and optimize over targets on the command line: what is run, what is shown, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.runtime.target import TARGETS
from onnxopt.targets.masked import find_mask
from onnxopt.targets.way import Unavailable


@pytest.fixture(autouse=True)
def without_emulation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache in which only masked libraries are kept, so that nothing is emulated."""
    if (real := Path.home() / ".cache/onnxopt/masked").is_dir():
        (tmp_path / "cache/onnxopt").mkdir(parents=True)
        (tmp_path / "cache/onnxopt/masked").symlink_to(real)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def avx2() -> str:
    if isinstance(found := find_mask(TARGETS["x86-64-avx2"]), Unavailable):
        pytest.skip(str(found))
    return "x86-64-avx2"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_each_target_has_a_row(net: Path, run, avx2: str) -> None:
    report = net.parent / "r.json"
    done = run(
        "validate", net, net, "--target", "native,arm64-cortex-a53", "--require-target", avx2, "--report", report,
        "--min-speedup", "0", "--samples", "8",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = read(report)
    assert [(t["target"], t["status"]) for t in found["targets"]] == [
        ("arm64-cortex-a53", "not checked"),
        ("x86-64-avx2", "passed"),
    ]
    assert found["targets"][1]["parity_db"] == "Infinity" or found["targets"][1]["parity_db"] > 100
    assert found["targets"][1]["samples"] == found["validation"][0]["samples"]
    assert found["verdict"] == "accepted"
    gate = found["gates"][-1]
    assert (gate["name"], gate["holds"]) == ("targets", True)
    assert gate["why"] == "1 of 1 pass; not checked on arm64-cortex-a53"
    text = " ".join(done.out.split())
    assert "x86-64-avx2" in text
    assert "arm64-cortex-a53: not checked: it is not set up on this machine; run 'onnxopt targets setup arm64'" in text


def test_processors_that_are_left_out_are_named(net: Path, run) -> None:
    done = run("validate", net, net, "--min-speedup", "0", "--samples", "8")
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "arm64-neoverse-v1: it is not set up on this machine; run 'onnxopt targets setup arm64'" in text
    assert (
        "not checked on"
        not in run("validate", net, net, "--min-speedup", "0", "--samples", "8", "--target", "native").out
    )


def test_a_failed_target_rejects(net: Path, run, avx2: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.check.targets.grown", lambda *_: ["the error is large"])
    monkeypatch.setattr("onnxopt.check.targets.is_coarse", lambda _: True)
    report = net.parent / "r.json"
    done = run("validate", net, net, "--target", avx2, "--min-speedup", "0", "--samples", "8", "--report", report)
    assert done.code == 1
    assert read(report)["verdict"] == "rejected"
    assert "rejected: targets fails" in done.out
    assert "x86-64-avx2: the error is large" in done.out


def test_what_is_required_must_be_there_before_the_work(net: Path, run) -> None:
    done = run("validate", net, net, "--require-target", "raspberrypi4", "--report", net.parent / "r.json")
    assert done.code == 4
    assert (
        "the target 'arm64-cortex-a72' is required, but not available: it is not set up on this machine; "
        "run 'onnxopt targets setup arm64'"
    ) in " ".join(done.err.split())
    assert done.out == ""
    assert not (net.parent / "r.json").exists()


def test_a_required_device_that_is_gone_is_an_error(net: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxopt.errors import TargetError
    from onnxopt.targets.remote import Device

    def gone(*_: object) -> None:
        raise TargetError("the device does not answer")

    monkeypatch.setattr(Device, "run", gone)
    arguments = ("--target", "native", "--min-speedup", "0", "--samples", "8", "--require-target", "ssh://pi@kitchen")
    done = run("validate", net, net, *arguments)
    assert done.code == 4
    assert "'ssh://pi@kitchen' is required, but was not checked: the device does not answer" in " ".join(
        done.err.split()
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("avx2", "no target is named 'avx2'"),
        ("", "name at least one target"),
        ("ssh://-oProxyCommand=x", "is no address of a device"),
        ("native+cpu", "is no target: write native+ and one of"),
    ],
)
def test_targets_that_are_none(net: Path, run, value: str, message: str) -> None:
    done = run("validate", net, net, "--target", value)
    assert done.code == 2
    assert message in " ".join(done.err.split())


def test_what_is_made_for_a_processor_is_judged_there(
    net: Path, run, avx2: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, seen = net.parent / "r.json", []

    def spy(*_: object, made_for: bool, **__: object) -> tuple[list[str], list[str]]:
        seen.append(made_for)
        return [], []

    monkeypatch.setattr("onnxopt.check.targets.too_slow", spy)
    done = run("optimize", net, "--passes", "fold-bn", "--target", avx2, "--samples", "16", "--report", report)
    found = read(report)
    assert [t["target"] for t in found["targets"]] == [avx2]
    assert found["targets"][0]["status"] == ("failed" if done.code else "passed")
    assert seen == [True], "nothing excuses a model that is slow where it was made for"
    assert not any("validated on native, not on" in note for note in found["notes"])
    if done.code == 0:
        remarks = {p.key: p.value for p in onnx.load(net.parent / "net.opt.onnx").metadata_props}
        assert json.loads(remarks["onnxopt.targets"]) == {avx2: "passed"}


def test_an_interrupt_leaves_nothing_behind(net: Path, avx2: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    np.savez(net.parent / "data.npz", image=np.zeros((64, 3, 32, 32), np.float32))
    report = net.parent / "r.json"
    program = "import sys; from onnxopt.cli import main; sys.exit(main())"
    arguments = ["validate", net, net, "--data", net.parent / "data.npz", "--target", "x86", "--report", report]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("on x86"):
            break
    os.killpg(process.pid, signal.SIGINT)
    rest = process.communicate(timeout=30)[1]
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert list(scratch.iterdir()) == []
    assert not report.exists()
