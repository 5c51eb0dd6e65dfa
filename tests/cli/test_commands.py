"""validate, inspect and passes on the command line, and both ways to start it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from onnxopt import __version__
from onnxopt.core.spec import known_passes, options

HERE = ("--target", "native")


def test_validate_judges_two_files(net: Path, run) -> None:
    other = net.parent / "other.onnx"
    assert run("optimize", net, "--passes", "fold-bn", "--no-validate", "--quiet", "-o", other).code == 0
    done = run("validate", *HERE, net, other, "--min-sqnr", "60", "--report", net.parent / "r.json")
    assert done.code == 0, done.err
    report = json.loads((net.parent / "r.json").read_text())
    assert report["verdict"] == "accepted"
    sqnr = report["validation"][0]["sqnr_db"]
    assert float(sqnr) > 60
    assert run("validate", *HERE, net, other, "--min-speedup", "1000", "--quiet").code == 1


def changed(net: Path, change: Callable[[onnx.GraphProto], object]) -> Path:
    model = onnx.load(net)
    change(model.graph)
    onnx.save(model, net.parent / "other.onnx")
    return net.parent / "other.onnx"


def test_validate_wants_the_same_inputs(net: Path, run) -> None:
    other = changed(net, lambda g: setattr(g.input[0].type.tensor_type.shape.dim[2], "dim_value", 16))
    done = run("validate", *HERE, net, other)
    assert done.code == 2
    assert f"{other} takes image: float32[N,3,16,32], but {net} takes image: float32[N,3,32,32]" in done.err


def test_validate_wants_the_same_outputs(net: Path, run) -> None:
    def rename(graph: onnx.GraphProto) -> None:
        graph.output[0].name = graph.node[-1].output[0] = "answers"

    other = changed(net, rename)
    done = run("validate", *HERE, net, other)
    assert done.code == 2
    assert f"{other} gives answers: float32[N,10], but {net} gives scores: float32[N,10]" in done.err


@pytest.mark.parametrize("batch", ["batch", 4])
def test_validate_takes_another_free_dimension_and_more_outputs(batch: str | int, net: Path, run) -> None:
    def widen(graph: onnx.GraphProto) -> None:
        dim = graph.input[0].type.tensor_type.shape.dim[0]
        setattr(dim, "dim_param" if isinstance(batch, str) else "dim_value", batch)
        graph.output.append(onnx.helper.make_tensor_value_info("f", onnx.TensorProto.FLOAT, ["K", 64]))

    done = run("validate", *HERE, net, changed(net, widen), "--min-speedup", "0")
    assert done.code == 0, done.err
    assert "100.0 % of the top answers stay" in " ".join(done.out.split())


def test_validate_finds_the_data_of_both_where_it_is_allowed(net: Path, run) -> None:
    def move_out(graph: onnx.GraphProto) -> None:
        tensor = graph.initializer[0]
        (net.parent.parent / "outside.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../outside.bin")

    model = onnx.load(net)
    move_out(model.graph)
    other = net.parent / "other.onnx"
    other.write_bytes(model.SerializeToString())
    assert run("validate", *HERE, net, other).code == 2
    done = run("validate", *HERE, net, other, "--allow-external-root", net.parent.parent, "--min-speedup", "0")
    assert done.code == 0, done.err


def test_inspect_shows_what_could_be_done_and_keeps_a_log(net: Path, run) -> None:
    done = run("inspect", net, "--report", net.parent / "i.json", "--log-file", net.parent / "log.txt")
    assert done.code == 0, done.err
    for word in ("image", "scores", "Conv", "Gemm", "BatchNormalization", "fold-bn", "quant", "prune"):
        assert word in done.out
    assert json.loads((net.parent / "i.json").read_text())
    assert "BatchNormalization" in (net.parent / "log.txt").read_text()


def test_inspect_can_be_quiet(net: Path, run) -> None:
    assert run("inspect", net, "--coupling", "--quiet") == (0, "", "")


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
    for command in ("optimize", "validate", "inspect", "audit", "passes"):
        assert f"onnxopt {command}" in run(command, "--help").out
