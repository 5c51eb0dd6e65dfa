"""The runner in a process of its own: its figures, and what it says when something goes wrong."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import ExecutionError
from onnxopt.runtime import runner
from onnxopt.runtime.exchange import Job, pack, unpack
from onnxopt.runtime.local import Launch, run_in_child

HEAD = '<ir_version: 9, opset_import: ["" : 17]> '
X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    path = tmp_path / "relu.onnx"
    onnx.save(
        onnx.parser.parse_model(
            HEAD + "g (float[N,3] x) => (float[N,3] y, int64[2] s) { y = Relu (x)  s = Shape (x) }"
        ),
        path,
    )
    return path


def test_a_run(relu: Path) -> None:
    found = run_in_child(Job(models=(relu,), feeds=[X], runs=3))
    (run,) = found.runs
    assert len(run.run_s) == 3
    assert all(0 < t < 5 for t in (*run.run_s, run.load_s))
    assert run.sha256 == ({"y": runner.digest(np, X["x"]), "s": runner.digest(np, np.array([2, 3]))},)
    np.testing.assert_array_equal(run.outputs[0]["y"], X["x"])
    assert run.outputs[0]["s"].tolist() == [2, 3]
    assert run.providers == ("CPUExecutionProvider",)
    assert found.memory_bytes is not None
    assert found.peak_bytes is not None
    assert 0 <= found.memory_bytes < found.peak_bytes < 500e6


def test_memory_is_the_models_own(tmp_path: Path) -> None:
    """40 MB of weights show, and what the parent holds does not."""
    weights = np.zeros((2500, 4000), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2500])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4000])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    ballast = np.ones(300_000_000, np.uint8)
    found = run_in_child(Job(models=(path,), feeds=[{"x": np.zeros((1, 2500), np.float32)}], keep=False))
    assert found.memory_bytes is not None
    assert found.peak_bytes is not None
    assert 40e6 < found.memory_bytes < 200e6
    assert found.peak_bytes < ballast.nbytes


def test_text_inputs(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    onnx.save(onnx.parser.parse_model(HEAD + "g (string[N] x) => (string[N] y) { y = Identity (x) }"), path)
    text = np.array(["one", "two"], object)
    (run,) = run_in_child(Job(models=(path,), feeds=[{"x": text}])).runs
    assert run.sha256 == ({"y": runner.digest(np, text)},)
    assert run.outputs[0]["y"].tolist() == ["one", "two"]


def test_types_that_do_not_travel() -> None:
    value = np.zeros(3, np.dtype("V2"))
    with pytest.raises(ExecutionError, match=r"the input 'x' of type .*V2 cannot be handed to another process"):
        run_in_child(Job(models=(Path("none.onnx"),), feeds=[{"x": value}]))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    path.write_bytes(b"no")
    with pytest.raises(ExecutionError, match=r"the model failed to load in a process of its own: .*"):
        run_in_child(Job(models=(path,), feeds=[X]))


def test_a_feed_that_does_not_fit(relu: Path) -> None:
    with pytest.raises(ExecutionError, match=r"the model failed to run in a process of its own: .*"):
        run_in_child(Job(models=(relu,), feeds=[{"x": np.zeros((2, 4), np.float32)}]))


def test_too_slow(relu: Path) -> None:
    with pytest.raises(ExecutionError, match=r"the model ran longer than 0\.01 s"):
        run_in_child(Job(models=(relu,), feeds=[X], timeout_s=0.01))


def started(program: str) -> Launch:
    """A program in place of Python and the runner."""
    return Launch(command=(sys.executable, "-c", program))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL; is there enough memory?"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("import sys; sys.exit('no room')", "gave no answer: no room"),
        ("print('hello')", "gave no answer: exit code 0"),
        ("print('{}')", "gave no answer: exit code 0"),
        ("print('{\"ok\": true}')", "what came back from the process in a process of its own is damaged"),
    ],
)
def test_crashes_have_names(program: str, message: str) -> None:
    with pytest.raises(ExecutionError, match=message.replace("?", r"\?")):
        run_in_child(Job(models=(), feeds=[]), started(program))


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="cannot start a process to run the model in: No such file"):
        run_in_child(Job(models=(), feeds=[]), Launch(command=(str(tmp_path / "python"),)))


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    program = (
        "import os, sys; e = os.environ; "
        'sys.exit(f\'{sorted(set(e) & {"SECRET", "PYTHONPATH"})} {e["ORT_DISABLE_TELEMETRY"]}\')'
    )
    with pytest.raises(ExecutionError, match=r"gave no answer: \[\] 1"):
        run_in_child(Job(models=(), feeds=[]), started(program))


def test_without_models_it_says_what_is_here() -> None:
    found = run_in_child(Job(models=(), feeds=[]))
    assert found.onnxruntime == onnxruntime.__version__
    assert found.numpy == np.__version__
    assert "CPUExecutionProvider" in found.providers
    assert found.runs == ()


def test_two_models_take_turns_on_every_feed(relu: Path) -> None:
    feeds = [{"x": sign * X["x"]} for sign in (1, -1)]
    found = run_in_child(Job(models=(relu, relu), feeds=feeds, runs=2, keep=False))
    assert [len(run.run_s) for run in found.runs] == [4, 4]
    assert found.runs[0].sha256 == found.runs[1].sha256
    assert found.runs[0].sha256[0] != found.runs[0].sha256[1]
    assert found.runs[0].outputs == ()


def test_outputs_that_changed_on_the_way_are_noticed(relu: Path, tmp_path: Path) -> None:
    said = {
        **{"onnxruntime": "1", "numpy": "2", "python": "3", "machine": "m", "providers": []},
        **{"load_s": [0.1], "run_s": [[0.1]], "names": [["y"]], "used": [[]]},
        "sha256": [[{"y": runner.digest(np, np.zeros(2))}]],
    }
    np.savez(tmp_path / "outputs.npz", **{"0.0.0": np.zeros(2)})
    assert unpack(said, tmp_path, "there").runs[0].outputs[0]["y"].tolist() == [0, 0]
    np.savez(tmp_path / "outputs.npz", **{"0.0.0": np.ones(2)})
    with pytest.raises(ExecutionError, match="there is damaged: the output 'y' is not what its SHA-256 says"):
        unpack(said, tmp_path, "there")


def ask(folder: Path, request: dict[str, object]) -> dict[str, object]:
    file = folder / "request.json"
    file.write_text(json.dumps(request))
    done = subprocess.run([sys.executable, runner.__file__, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return dict(json.loads(done.stdout))


def test_another_protocol_is_refused(tmp_path: Path) -> None:
    answer = ask(tmp_path, {"protocol": 99})
    assert (answer["ok"], answer["stage"]) == (False, "request")
    assert "this runner speaks protocol 2, not 99" in str(answer["error"])


def test_the_runner_answers_in_one_line(relu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = json.loads(pack(Job(models=(), feeds=[X], runs=2), tmp_path, ["relu.onnx"], []).read_text())
    assert runner.main(str(tmp_path / "request.json")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["protocol"], answer["names"]) == (True, 2, [["y", "s"]])
    assert [len(times) for times in answer["run_s"]] == [2]
    (tmp_path / "request.json").write_text(json.dumps({**request, "feeds": "no.npz"}))
    assert runner.main(str(tmp_path / "request.json")) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["stage"]) == (False, "feeds")
    assert answer["error"].startswith("FileNotFoundError: ")


def test_what_is_no_tensor_has_a_digest() -> None:
    assert runner.digest(np, [1]) != runner.digest(np, [2])
    assert runner.digest(np, np.zeros(2)) != runner.digest(np, np.zeros((2, 1)))
    assert runner.digest(np, np.zeros(2)) != runner.digest(np, np.zeros(2, np.int64))


def test_the_runner_travels() -> None:
    """Syntax of Python 3.8, and nothing of ours."""
    source = Path(runner.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported - {
        "__future__",
        "contextlib",
        "hashlib",
        "json",
        "os",
        "platform",
        "sys",
        "time",
        "typing",
        "resource",
    } == {
        "numpy",
        "onnxruntime",
    }
    assert source.index('os.environ["ORT_DISABLE_TELEMETRY"]') < source.index("import onnxruntime")


def test_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc there is getrusage: the same order of magnitude, whatever its unit."""
    assert runner.resident()
    monkeypatch.setattr(runner, "status", lambda key: None)
    peak = runner.peak()
    assert peak is not None
    assert 10e6 < peak < 1e11
    monkeypatch.setitem(sys.modules, "resource", None)
    assert runner.peak() is None
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
