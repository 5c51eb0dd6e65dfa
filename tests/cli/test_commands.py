"""validate, inspect and passes on the command line, and both ways to start it."""

import json
import subprocess
import sys
from pathlib import Path

import onnx

from onnxopt import __version__
from onnxopt.core.spec import known_passes, options


def test_validate_judges_two_files(net: Path, run) -> None:
    other = net.parent / "other.onnx"
    assert run("optimize", net, "--passes", "fold-bn", "--no-validate", "--quiet", "-o", other).code == 0
    done = run("validate", net, other, "--min-sqnr", "60", "--report", net.parent / "r.json")
    assert done.code == 0, done.err
    report = json.loads((net.parent / "r.json").read_text())
    assert report["verdict"] == "accepted"
    sqnr = report["validation"][0]["sqnr_db"]
    assert float(sqnr) > 60
    assert run("validate", net, other, "--min-speedup", "1000", "--quiet").code == 1


def test_validate_wants_the_same_inputs(net: Path, run) -> None:
    model = onnx.load(net)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, net.parent / "other.onnx")
    done = run("validate", net, net.parent / "other.onnx")
    assert done.code == 2
    assert "takes image: float32[1,3,32,32], but" in done.err


def test_inspect_shows_what_could_be_done(net: Path, run) -> None:
    done = run("inspect", net, "--report", net.parent / "i.json")
    assert done.code == 0, done.err
    for word in ("image", "scores", "Conv", "Gemm", "BatchNormalization", "fold-bn", "quant", "prune"):
        assert word in done.out
    assert json.loads((net.parent / "i.json").read_text())


def test_passes_lists_every_option(run) -> None:
    done = run("passes")
    assert done.code == 0
    for name, pass_type in known_passes().items():
        assert name in done.out
        assert all(option.name in done.out for option in options(pass_type))
    assert "prune" not in run("passes", "clean").out.splitlines()[0]
    assert "did you mean 'quant'" in run("passes", "qant").err


def test_both_ways_to_start() -> None:
    done = subprocess.run([sys.executable, "-m", "onnxopt", "--version"], capture_output=True, text=True, check=True)
    assert __version__ in done.stdout


def test_help_has_examples(run) -> None:
    for command in ("optimize", "validate", "inspect", "passes"):
        assert f"onnxopt {command}" in run(command, "--help").out
