"""What goes to the runner and what comes back, whole or damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxopt.errors import ExecutionError, TargetError
from onnxopt.runtime import runner
from onnxopt.runtime.exchange import Job, answer_of, pack, unpack

VALUE = np.arange(3, dtype=np.float32)


def test_a_request_says_all_that_a_job_does(tmp_path: Path) -> None:
    feeds = [{"b": VALUE, "a/b": np.array(["x", "yz"], object)}, {"b": -VALUE, "a/b": np.array(["", "ü"], object)}]
    job = Job(
        **{"models": (Path("m"),), "feeds": feeds, "threads": 2, "runs": 3, "keep": False, "optimize": False},
        **{"providers": ("XnnpackExecutionProvider",), "settings": {"session.x64quantprecision": "1"}, "mark": True},
    )
    request = json.loads(pack(job, tmp_path, ["0.onnx"], ["/site"]).read_text())
    assert request == {
        **{"protocol": 2, "models": ["0.onnx"], "feeds": "feeds.npz", "inputs": ["b", "a/b"], "count": 2},
        **{"outputs": None, "threads": 2, "runs": 3, "optimize": False, "providers": ["XnnpackExecutionProvider"]},
        **{"settings": {"session.force_spinning_stop": "1", "session.x64quantprecision": "1"}},
        **{"mark": True, "path": ["/site"]},
    }
    with np.load(tmp_path / "feeds.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"0.0", "0.1", "1.0", "1.1"}
        assert arrays["1.1"].tolist() == ["", "ü"]
        assert arrays["1.0"].tolist() == [0, -1, -2]


def test_types_that_numpy_does_not_know(tmp_path: Path) -> None:
    job = Job(models=(), feeds=[{"x": np.zeros(2, ml_dtypes.bfloat16)}])
    with pytest.raises(ExecutionError, match="the input 'x' of type bfloat16 cannot be handed to another process"):
        pack(job, tmp_path, [], [])


OK = b'{"ok": true}'


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "message"),
    [
        (OK, b"", -9, "the process that ran the model there was ended by SIGKILL; is there enough memory?"),
        (OK, b"", -4, "was ended by SIGILL"),
        (OK, b"", -63, "was ended by signal 63"),
        (b"", b"a\nb\n", 1, "gave no answer: b"),
        (b"\xff\n[1]", b"", 3, "gave no answer: exit code 3"),
        (b'"ok"', b"", 0, "gave no answer: exit code 0"),
        (b"{}", b"\xff", 0, "gave no answer: �"),
        (b'{"ok": false, "stage": "run", "error": "E:\\n  why"}', b"", 1, "the model failed to run there: E: why"),
        (b'{"ok": false}', b"", 1, "the model failed to None there: "),
    ],
)
def test_what_is_no_answer(stdout: bytes, stderr: bytes, code: int, message: str) -> None:
    with pytest.raises(ExecutionError, match=re.escape(message)) as refused:
        answer_of(stdout, stderr, code, "there")
    assert "\n" not in str(refused.value)


def test_missing_packages_are_the_targets_fault() -> None:
    said = b'{"ok": false, "stage": "import", "error": "ModuleNotFoundError: No module named \'numpy\'"}'
    with pytest.raises(TargetError, match="Python there lacks what the runner needs: ModuleNotFoundError: No module"):
        answer_of(said, b"", 1, "there")


def test_what_stands_before_the_answer_does_not_matter() -> None:
    assert answer_of(b"a library says hello\n" + OK + b"\n", b"warning", 0, "there") == {"ok": True}


def said(**changes: Any) -> dict[str, Any]:
    """An honest answer for one model with one output on one feed, with changes."""
    return {
        **{"onnxruntime": "1", "numpy": "2", "python": "3", "machine": "m", "providers": ["P"]},
        **{"load_s": [0.5], "run_s": [[0.25]], "names": [["y"]], "used": [["P"]], "peak_bytes": 5, "baseline_bytes": 3},
        "sha256": [[{"y": runner.digest(np, VALUE)}]],
        **changes,
    }


def test_an_honest_answer(tmp_path: Path) -> None:
    np.savez(tmp_path / "outputs.npz", **{"0.0.0": VALUE})
    found = unpack(said(), tmp_path, "there")
    (run,) = found.runs
    assert run.outputs[0]["y"].tolist() == [0, 1, 2]
    assert (run.load_s, run.run_s, run.providers) == (0.5, (0.25,), ("P",))
    assert (found.memory_bytes, found.peak_bytes) == (2, 5)


def test_without_outputs_or_memory(tmp_path: Path) -> None:
    found = unpack(said(peak_bytes=None), tmp_path, "there")
    assert (found.memory_bytes, found.peak_bytes, found.runs[0].outputs) == (None, None, ())
    assert unpack(said(baseline_bytes=9), tmp_path, "there").memory_bytes == 0


def test_outputs_that_cannot_be_saved_are_named_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "outputs.npz")
    found = unpack(said(unsaved=["y", "y"]), tmp_path, "there")
    assert found.unsaved == ("y",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": [["y", "z"]]}, "the output 'z' is missing"),
        ({"sha256": [[{"y": "0"}]]}, "the output 'y' is not what its SHA-256 says"),
        ({"sha256": [[]], "load_s": []}, "list index out of range"),
        ({"sha256": 3}, "not subscriptable"),
        ({"sha256": [[{}]]}, "'y'"),
        ({"run_s": [["soon"]]}, "could not convert string to float: 'soon'"),
        ({"names": 3}, "not iterable"),
        ({"peak_bytes": "much"}, "unsupported operand"),
        ({"providers": None}, "not iterable"),
        ({"load_s": [10**400]}, "too large"),
    ],
)
def test_answers_that_make_no_sense(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "outputs.npz", **{"0.0.0": VALUE})
    with pytest.raises(ExecutionError, match=f"what came back from the process there is damaged: .*{message}"):
        unpack(said(**changes), tmp_path, "there")


def test_outputs_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "outputs.npz"
    np.savez_compressed(file, **{"0.0.0": np.arange(3000.0)})
    whole = file.read_bytes()
    spoiled = bytearray(whole)
    spoiled[200:400] = bytes(200)
    pickled = tmp_path / "objects.npz"
    np.savez(pickled, **{"0.0.0": np.array([{}], object)})
    for content in (b"", b"PK", whole[: len(whole) // 2], bytes(spoiled), pickled.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(ExecutionError, match="what came back from the process there is damaged"):
            unpack(said(), tmp_path, "there")
