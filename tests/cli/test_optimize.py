"""The main job on the command line: what is saved, what is said, how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.graph import io

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_models"

FEW = ("--samples", "16")
REPORT_KEYS = {"schema", "versions", "machine", "input", "output", "passes", "validation", "gates", "verdict", "notes"}
VALIDATION_KEYS = {
    "target", "sqnr_db", "cosine", "agreement", "accuracy", "accuracy_reference", "latency_ms", "latency_reference_ms",
    "speedup",
}  # fmt: skip


@pytest.mark.slow
def test_the_main_job_on_a_sample_model(run, tmp_path: Path) -> None:
    done = run(
        "optimize", SAMPLES / "digits_resnet.onnx", "--passes", "quant,prune",
        "--data", SAMPLES / "digits_calib.npz", "--test-data", SAMPLES / "digits_test.npz",
        "--min-agreement", "97%", "-o", tmp_path / "small.onnx", "--report", tmp_path / "r.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (tmp_path / "small.onnx").stat().st_size < (SAMPLES / "digits_resnet.onnx").stat().st_size / 3
    assert "accepted: saved as" in done.out
    assert "order changed from quant,prune to prune,quant" in " ".join(done.out.split())
    report = json.loads((tmp_path / "r.json").read_text())
    assert set(report) >= REPORT_KEYS
    assert set(report["validation"][0]) >= VALIDATION_KEYS
    assert [p["spec"].partition(":")[0] for p in report["passes"]][-2:] == ["prune", "quant"]
    assert report["validation"][0]["agreement"] >= 0.97
    assert report["verdict"] == "accepted"
    assert report["output"]["sha256"] == io.sha256(tmp_path / "small.onnx")
    assert report["output"]["bytes"] == (tmp_path / "small.onnx").stat().st_size


def test_what_is_made_for_another_processor_is_judged_here_and_says_so(
    net: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = run("optimize", net, "--passes", "clean", "--target", "arm64", "--report", net.parent / "r.json")
    assert done.code == 0, done.err
    report = json.loads((net.parent / "r.json").read_text())
    assert report["validation"][0]["target"] == "native"
    why = "it is not set up on this machine; run 'onnxopt targets setup arm64'"
    assert f"validated on native, not on arm64: {why}" in report["notes"]


def test_an_exact_pass_is_saved_with_its_provenance(net: Path, run) -> None:
    done = run("optimize", net, "--passes", "fold-bn", "--check-each", "--report", net.parent / "r.json")
    assert done.code == 0, done.err
    saved = onnx.load(net.parent / "net.opt.onnx")
    assert "BatchNormalization" not in {n.op_type for n in saved.graph.node}
    remarks = {p.key: p.value for p in saved.metadata_props}
    assert remarks["onnxopt.recipe"].split(",")[-1] == "fold-bn"
    assert remarks["onnxopt.input_sha256"] == io.sha256(net)
    assert remarks["onnxopt.verdict"] == "accepted"
    assert json.loads(remarks["onnxopt.validation.native"])["samples"] > 0
    report = json.loads((net.parent / "r.json").read_text())
    assert report["passes"][-1]["figures"]["check"]["scores"] < 1e-4
    assert any("SYNTHETIC" in note for note in report["notes"])


def test_a_failed_gate_saves_nothing(net: Path, run) -> None:
    before = sorted(net.parent.iterdir())
    done = run("optimize", net, "--passes", "fold-bn", "--min-speedup", "1000")
    assert done.code == 1
    assert "min-speedup" in done.out
    assert "nothing was saved" in done.out
    assert sorted(net.parent.iterdir()) == before


def test_force_saves_what_failed(net: Path, run) -> None:
    done = run("optimize", net, "--passes", "fold-bn", "--min-speedup", "1000", "--force")
    assert done.code == 0
    saved = onnx.load(net.parent / "net.opt.onnx")
    assert {p.key: p.value for p in saved.metadata_props}["onnxopt.verdict"] == "forced"


def test_no_validation_is_said(net: Path, run) -> None:
    done = run("optimize", net, "--passes", "fold-bn", "--no-validate")
    assert done.code == 0
    assert "not validated: nothing is known of its accuracy or speed" in " ".join(done.out.split())


def test_quiet_says_nothing(net: Path, run) -> None:
    assert run("optimize", net, "--passes", "fold-bn", "--no-validate", "--quiet") == (0, "", "")


def test_a_log_file_gets_what_is_shown(net: Path, run) -> None:
    run("optimize", net, "--passes", "fold-bn", "--no-validate", "--quiet", "--log-file", net.parent / "log.txt")
    assert "net.opt.onnx" in (net.parent / "log.txt").read_text()


def test_verbose_names_every_skip(net: Path, run) -> None:
    done = run("optimize", net, "--passes", "prune:ratio=0.3", "--no-validate", "--verbose", *FEW)
    assert done.code == 0
    assert "conv1" in done.out
    assert "gemm" in done.out


def test_order_and_stops(net: Path, run) -> None:
    done = run("optimize", net, "--passes", "quant,clean", "--keep-order", "--no-validate", *FEW)
    assert "order changed" not in done.out
    done = run("optimize", net, "--passes", "quant", "--stop-after", "1", "--no-validate", *FEW)
    assert "stopped after step 1 of" in done.out
    assert all(n.op_type != "QuantizeLinear" for n in onnx.load(net.parent / "net.opt.onnx").graph.node)


def test_recipes(net: Path, run) -> None:
    (net.parent / "r.toml").write_text('passes = ["fold-bn", {name = "prune", ratio = 0.25}]\n')
    assert run("optimize", net, "--recipe", net.parent / "r.toml", "--no-validate", "--quiet", *FEW).code == 0
    saved = onnx.load(net.parent / "net.opt.onnx")
    recipe = {p.key: p.value for p in saved.metadata_props}["onnxopt.recipe"]
    assert recipe.endswith("fold-bn,conv-shortcut,prune:ratio=0.25")


def test_a_cache_is_filled_and_used(net: Path, run) -> None:
    def seconds() -> int:
        arguments = ["--passes", "quant:measure=false", "--no-validate", "--quiet", "--cache", net.parent / "cache"]
        assert run("optimize", net, *arguments, *FEW).code == 0
        return len(list((net.parent / "cache").iterdir()))

    assert seconds() == seconds() > 0


def test_external_data_stays_external(net: Path, run) -> None:
    model = onnx.load(net)
    onnx.save(model, net, save_as_external_data=True, location="net.data", size_threshold=0)
    done = run("optimize", net, "--passes", "fold-bn", "--quiet")
    assert done.code == 0, done.err
    assert (net.parent / "net.opt.onnx.data").stat().st_size > 100_000
    feed = {"image": np.zeros((1, 3, 32, 32), np.float32)}
    from onnxopt.runtime.session import Session

    expected = Session(net).run(feed)["scores"]
    np.testing.assert_allclose(Session(net.parent / "net.opt.onnx").run(feed)["scores"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [(signal.SIGINT, 130, ["error: interrupted: nothing was written"]), (signal.SIGTERM, 143, [])],
)
def test_an_interrupted_run_leaves_nothing(sent: signal.Signals, code: int, said: list[str], net: Path) -> None:
    big = np.random.default_rng(0).standard_normal((4000, 3, 32, 32)).astype(np.float32)
    np.save(net.parent / "many.npy", big)
    before = sorted(net.parent.iterdir())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    arguments = ["optimize", net, "--passes", "clean", "--data", net.parent / "many.npy", "--quiet"]
    child = subprocess.Popen(
        [sys.executable, "-m", "onnxopt", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    while child.poll() is None and not any((p / "net.opt.onnx").exists() for p in net.parent.glob(".onnxopt-*")):
        time.sleep(0.01)
    child.send_signal(sent)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == code
    assert errors.split("\n")[-2:-1] == said
    assert "Traceback" not in errors
    assert sorted(net.parent.iterdir()) == before


def test_progress_is_plain_lines_off_a_terminal(capsys) -> None:
    from onnxopt.cli import output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "_PATIENCE_S", 0.0)
        with output.Output() as out:
            assert list(out.track(range(3), "counting")) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("counting: 1 of 3, ")
    assert lines[-1].startswith("counting: 3 done in ")


def test_the_report_is_a_page_where_its_name_says_so(net: Path, run) -> None:
    page = net.parent / "r.html"
    assert run("optimize", net, "--passes", "clean", "--no-validate", "--quiet", "--report", page).code == 0
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert "net.opt.onnx" in text
