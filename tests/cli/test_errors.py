"""A user's mistake is one line that names what to do, exit code 2, and nothing left behind."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

CLEAN = ["--passes", "clean", "--quiet"]


def edit(path: Path, change) -> None:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())


def not_onnx(path: Path) -> None:
    path.write_text("this is text")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def move_out(path: Path, location: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        (path.parent.parent / "outside.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    edit(path, change)


def cycle(path: Path) -> None:
    edit(path, lambda m: m.graph.node[0].input.__setitem__(0, "r1"))


def unknown_domain(path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[2].domain = "acme"
        model.opset_import.append(helper.make_opsetid("acme", 1))

    edit(path, change)


def nan_weights(path: Path) -> None:
    values = np.full((32, 3, 3, 3), np.nan, np.float32)
    edit(path, lambda m: m.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w1")))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "cannot read"),
        (not_onnx, "is not an ONNX model"),
        (truncated, "was cut off"),
        (lambda p: move_out(p, "missing.bin"), "which is not there: put the file beside the model"),
        (lambda p: move_out(p, "../outside.bin"), "--allow-external-root"),
        (cycle, "cycle"),
        (unknown_domain, "acme"),
        (nan_weights, "NaN"),
    ],
    ids=["no file", "not onnx", "truncated", "no external data", "path escape", "cycle", "unknown domain", "nan"],
)
def test_a_bad_model(spoil, message: str, net: Path, run) -> None:
    spoil(net)
    before = sorted(net.parent.iterdir())
    done = run("optimize", net, *CLEAN)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1
    assert message in done.err
    assert sorted(net.parent.iterdir()) == before


def test_external_data_may_be_allowed_elsewhere(net: Path, run) -> None:
    move_out(net, "../outside.bin")
    done = run("optimize", net, *CLEAN, "--no-validate", "--allow-external-root", net.parent.parent)
    assert done.code == 0
    assert (net.parent / "net.opt.onnx.data").exists()


def test_a_model_with_unknown_operators_can_still_be_rewritten(net: Path, run) -> None:
    unknown_domain(net)
    assert run("optimize", net, "--passes", "fold-bn", "--no-validate", "--quiet").code == 0
    saved = onnx.load(net.parent / "net.opt.onnx")
    assert [n.op_type for n in saved.graph.node][:2] == ["Conv", "Relu"]
    assert {n.domain for n in saved.graph.node} == {"", "acme"}


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"picture": np.zeros((2, 3, 32, 32), np.float32), "b": np.zeros(2)}, "image: float32[N,3,32,32]"),
        ({"image": np.zeros((2, 3, 30, 32), np.float32)}, "image: float32[N,3,32,32]"),
        ({"image": np.zeros((2, 3, 32, 32), np.uint8)}, "image: float32[N,3,32,32]"),
        ({"image": np.array([{"a": 1}], dtype=object)}, "image"),
    ],
    ids=["name", "shape", "type", "pickle"],
)
def test_wrong_feeds(feeds, message: str, net: Path, run) -> None:
    np.savez(net.parent / "data.npz", **feeds)
    before = sorted(net.parent.iterdir())
    done = run("optimize", net, *CLEAN, "--data", net.parent / "data.npz")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert message in done.err
    assert sorted(net.parent.iterdir()) == before


def test_a_data_file_that_is_not_there(net: Path, run) -> None:
    done = run("optimize", net, *CLEAN, "--data", "nowhere.npz")
    assert done.code == 2
    assert "nowhere.npz" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passes", "qant"], "there is no pass 'qant'; did you mean 'quant'?"),
        (["--passes", "prune:ratoi=0.3"], "the pass 'prune' has no option 'ratoi'; did you mean 'ratio'"),
        (["--passes", "prune:ratio=much"], "prune:ratio is 'much', which is no number"),
        (["--recipe", "none.toml"], "cannot read the recipe"),
        ([], "name the passes with --passes or --recipe"),
        (["--passes", "clean", "--min-agreement", "97"], "97"),
        (["--passes", "clean", "--max-size", "big"], "'big' is no size"),
        (["--passes", "clean", "--stop-after", "0"], "--stop-after"),
        (["--passes", "clean", "--seed", "-1"], "--seed"),
        (["--passes", "clean", "--threads", "100000"], "--threads"),
        (["--passes", "clean", "--min-speedup", "nan"], "'nan' is no number"),
        (["--passes", "clean", "--min-sqnr", "nan"], "'nan' is no number"),
        (["--passes", "clean", "--max-size", "9" * 400], "is more than any file"),
        (["--passes", "clean", "--dim", "n=" + "9" * 5000], "is no dimension"),
        (["--passes", "clean", "--preprocess", "imagnet"], "imagenet"),
        (["--passes", "clean", "--target", "avx2"], "no target is named 'avx2'; did you mean 'x86-64-avx2'"),
    ],
)
def test_wrong_options_fail_before_the_model_is_read(arguments, message: str, net: Path, run) -> None:
    if "--preprocess" not in arguments:
        net.write_text("not read")
    done = run("optimize", net, *arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_an_unknown_command_or_option(run) -> None:
    assert run("optimise").code == 2
    assert run("optimize", "--no-such").code == 2


def test_the_input_is_not_overwritten(net: Path, run) -> None:
    before = net.read_bytes()
    done = run("optimize", net, *CLEAN, "-o", net)
    assert done.code == 2
    assert "is the input: name another file with -o, or say --in-place" in done.err
    assert net.read_bytes() == before
    assert run("optimize", net, "--passes", "fold-bn", "--quiet", "--in-place", "--no-validate").code == 0
    assert net.read_bytes() != before
    assert [p.name for p in net.parent.iterdir()] == ["net.onnx"]


def test_an_output_folder_that_is_not_there(net: Path, run) -> None:
    done = run("optimize", net, *CLEAN, "-o", net.parent / "no" / "out.onnx")
    assert done.code == 2
    assert "cannot write" in done.err
    assert "choose another place" in done.err


def test_an_output_that_is_a_folder(net: Path, run) -> None:
    done = run("optimize", net, *CLEAN, "-o", net.parent)
    assert done.code == 2
    assert "is a folder" in done.err


def shell(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "onnxopt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)


def test_a_read_only_output_folder(net: Path) -> None:
    """The kernel's own folders are read-only even to root."""
    target = Path("/sys/out.onnx") if os.geteuid() == 0 else net.parent / "locked" / "out.onnx"
    (net.parent / "locked").mkdir(mode=0o500)
    done = shell("optimize", net, *CLEAN, "-o", target)
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(p.name for p in net.parent.iterdir()) == ["locked", "net.onnx"]


def test_a_full_disk(net: Path) -> None:
    """A limit on file sizes makes the system refuse the write half way, as a full disk does."""
    (net.parent / "out").mkdir()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = shell("optimize", net, *CLEAN, "-o", net.parent / "out" / "o.onnx", preexec_fn=limit)
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert "free some space" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list((net.parent / "out").iterdir()) == []


@pytest.mark.parametrize("command", ["optimize", "validate", "inspect"])
@pytest.mark.parametrize("option", ["--report", "--log-file"])
def test_inputs_are_not_written_over(command: str, option: str, net: Path, run) -> None:
    files = {"optimize": [net, *CLEAN], "validate": [net, net, "--target", "native"], "inspect": [net]}[command]
    before = net.read_bytes()
    done = run(command, *files, option, net)
    assert (done.code, done.out) == (2, "")
    assert f"{option} names {net}, which is read" in done.err
    assert len(done.err.splitlines()) == 1
    assert net.read_bytes() == before
    assert [p.name for p in net.parent.iterdir()] == ["net.onnx"]


def test_a_recipe_is_not_written_over(net: Path, run) -> None:
    recipe = net.parent / "r.toml"
    recipe.write_text('passes = ["clean"]\n')
    assert run("optimize", net, "--recipe", recipe, "--report", recipe).code == 2
    assert recipe.read_text() == 'passes = ["clean"]\n'


@pytest.mark.parametrize("command", ["optimize", "validate", "inspect"])
@pytest.mark.parametrize(("place", "message"), [("no/r.json", "cannot write"), ("", "is a folder: name a file with")])
def test_a_report_that_cannot_be_written(command: str, place: str, message: str, net: Path, run) -> None:
    """It is noticed before the work is done, and before anything is saved."""
    files = {"optimize": [net, *CLEAN], "validate": [net, net, "--target", "native"], "inspect": [net]}[command]
    done = run(command, *files, "--report", net.parent / place)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert [p.name for p in net.parent.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_model_without_a_name(name: str, run) -> None:
    done = run("optimize", name, *CLEAN)
    assert done.code == 2
    assert "is no model: name an .onnx file" in done.err


def test_a_log_file_that_cannot_be_written(net: Path, run) -> None:
    done = run("optimize", net, *CLEAN, "--log-file", net.parent / "no" / "log.txt")
    assert done.code == 2
    assert "cannot write the log file" in done.err


def test_a_name_that_is_not_utf8(net: Path, run) -> None:
    """It can be shown and written to a report, but ONNX Runtime cannot open it."""
    odd = Path(os.fsdecode(os.fsencode(net.parent) + b"/odd\xff.onnx"))
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,8] x) => (float[N,8] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), odd)
    done = run("inspect", odd, "--report", odd.with_name("r.json"), "--log-file", odd.with_name("log.txt"))
    assert done.code == 0, done.err
    assert json.loads(odd.with_name("r.json").read_text())["path"] == str(odd)
    done = shell("optimize", odd, *CLEAN)
    assert done.returncode == 2
    assert "odd\\udcff.onnx' is not UTF-8: ONNX Runtime cannot open it; rename it" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = run("optimize", odd, "--passes", "clean", "--no-validate", "--report", odd.with_name("r.json"))
    assert done.code == 0, done.err
    assert json.loads(odd.with_name("r.json").read_text())["input"]["path"] == str(odd)
