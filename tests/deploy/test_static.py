"""The checks that need no run of the model: each passes, fails and is not run where it should be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.deploy.finding import CheckReport, Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.run import CHECKS, check
from onnxopt.deploy.subject import Subject
from onnxopt.errors import DataError, ModelError, SpecError, TargetError
from onnxopt.graph import io
from onnxopt.targets.runtimes import python_version, runtime_folder

STATIC = ("structure", "external-data", "opset", "operators", "size", "provenance")
node = helper.make_node
RELU = node("Relu", ["x"], ["y"], name="relu")
ADD = node("Add", ["x", "c"], ["y"], name="add")
Make = Callable[..., Path]


def model(
    *nodes: onnx.NodeProto,
    constants: tuple[onnx.TensorProto, ...] = (),
    opsets: tuple[tuple[str, int], ...] = (("", 17),),
    ir: int = 8,
) -> onnx.ModelProto:
    """From x to y, both float32[2]; a Relu unless nodes are given."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "y")]
    graph = helper.make_graph(list(nodes) or [RELU], "g", ends[:1], ends[1:], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*o) for o in opsets], ir_version=ir)


def claim(*dims: int, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """An Add of a constant that says to have this shape, and has four bytes."""
    return model(ADD, constants=(TensorProto(name="c", data_type=dtype, dims=dims, raw_data=b"1234"),))


def beside(location: str | None, offset: str = "0", length: str = "8", dims: tuple[int, ...] = (2,)) -> onnx.ModelProto:
    """An Add of a constant that says that its values lie elsewhere."""
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return model(ADD, constants=(tensor,))


@pytest.fixture
def save(tmp_path: Path) -> Make:
    folder = tmp_path / "models"
    folder.mkdir()

    def write(content: onnx.ModelProto | bytes) -> Path:
        path = folder / "m.onnx"
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        return path

    return write


def judge(path: Path, *only: str, **tables: dict[str, Any]) -> CheckReport:
    wanted = {"checks": {"only": list(only or STATIC)}}
    return check(Subject(path), Policy().with_tables(wanted | tables, path.parent))


def only(path: Path, name: str, **tables: dict[str, Any]) -> Finding:
    (found,) = judge(path, name, **tables).findings
    return found


def failed(path: Path) -> dict[str, str]:
    return {f.check: f.why for f in judge(path).findings if f.status == "failed"}


def test_a_good_model_passes_all_that_can_be_told(save: Make) -> None:
    report = judge(save(model()))
    assert report.verdict == "passed"
    assert {f.check: f.status for f in report.findings} == {
        **dict.fromkeys(STATIC, "passed"),
        "size": "not run",
        "provenance": "not run",
    }
    assert report.model.sha256 == io.sha256(Path(report.model.path))
    assert report.model.bytes == Path(report.model.path).stat().st_size
    assert set(report.left_out) == {c.name for c in CHECKS} - set(STATIC)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not an ONNX model"),
        (b"some text\n" * 100, "is not an ONNX model"),
        (bytes(4096), "is not an ONNX model"),
        (np.random.default_rng(0).bytes(4096), "is not an ONNX model"),
        (model().SerializeToString()[:-9], "was cut off"),
        (model(RELU, node("Abs", ["x"], ["y"])), "'y' is given to two tensors"),
        (model(node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), RELU), "a cycle through node"),
        (model(node("Add", ["x", "nothing"], ["y"])), "read 'nothing', which nothing in the graph makes"),
        (model(node("Relu", ["x"], ["z"])), "the graph's outputs read 'y'"),
        (model(node("Nonsense", ["x"], ["y"])), "No Op registered for Nonsense"),
        (model(node("Secret", ["x"], ["y"], domain="corp")), "No opset import for domain 'corp'"),
        (model(opsets=(("", 6),)), "7 is the oldest supported"),
        (model(ir=0), "the IR version 0"),
        (model(ir=-5), "the IR version -5"),
        (claim(2**31, 4), "is damaged"),
        (claim(2**62, 2**62), "is damaged"),
        (claim(3), "is damaged"),
        (claim(-1), "Negative dimension"),
        (claim(1, dtype=777), "is damaged"),
        (model(ADD, constants=(numpy_helper.from_array(np.full(2, np.nan, np.float32), "c"),)), "contain NaN"),
    ],
)
def test_structure_fails_and_the_rest_is_not_run(content: onnx.ModelProto | bytes, why: str, save: Make) -> None:
    report = judge(save(content))
    assert report.verdict == "failed"
    first, *others = report.findings
    assert (first.check, first.status) == ("structure", "failed")
    assert why in first.why
    assert "\n" not in first.why
    assert {(f.status, f.why) for f in others} == {("not run", "structure failed, which it builds on")}


@pytest.mark.parametrize(
    ("values", "why"), [([1.0, 2.0, 3.0], "Incompatible dimensions"), ([1, 2], "inconsistent type tensor(int64)")]
)
def test_structure_names_the_node(values: list[float], why: str, save: Make) -> None:
    dtype = np.float32 if isinstance(values[0], float) else np.int64
    found = only(save(model(ADD, constants=(numpy_helper.from_array(np.array(values, dtype), "c"),))), "structure")
    assert (found.status, found.places) == ("failed", ("add",))
    assert why in found.why


def test_a_file_that_no_reader_takes(save: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.graph.io._LARGEST_MESSAGE", 50)
    found = only(save(model()), "structure")
    assert found.status == "failed"
    assert "is over 2 GB" in found.why


def test_weights_beside_the_model(save: Make) -> None:
    path = save(beside("w.bin"))
    (path.parent / "w.bin").write_bytes(bytes(8))
    report = judge(path)
    assert report.verdict == "passed"
    assert next(f.why for f in report.findings if f.check == "external-data") == "1 tensor in 1 file beside the model"
    assert report.model.bytes == path.stat().st_size + 8


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (beside("nowhere.bin"), "which is not there"),
        (beside("/etc/passwd"), "outside"),
        (beside("/dev/zero"), "outside"),
        (beside("../secret.bin"), "outside"),
        (beside("link.bin"), "outside"),
        (beside("loop.bin"), ""),
        (beside("."), "which is not there"),
        (beside("pipe.bin"), "which is not there"),
        (beside("short.bin"), "which has 3: the file is cut off"),
        (beside("short.bin", length=str(2**40), dims=(2**38,)), "needs 1099511627776 bytes"),
        (beside("short.bin", offset=str(2**62)), "is no size in bytes"),
        (beside("short.bin", offset="-1"), "is no size in bytes"),
        (beside(None), "names no data file"),
        (beside("a\0b"), "names no data file"),
        (beside("a" * 5000), "which cannot be"),
    ],
)
def test_data_that_is_not_where_it_may_be(content: onnx.ModelProto, why: str, save: Make) -> None:
    path = save(content)
    folder = path.parent
    (folder.parent / "secret.bin").write_bytes(bytes(8))
    (folder / "short.bin").write_bytes(bytes(3))
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    (folder / "loop.bin").symlink_to("loop.bin")
    os.mkfifo(folder / "pipe.bin")
    report = judge(path)
    (found,) = [f for f in report.findings if f.status == "failed"]
    assert (found.check, found.places, found.measured) == ("external-data", ("c",), 1)
    assert why in found.why
    assert "--allow-external-root" not in found.why
    assert report.findings[0].why == "its weights cannot be read: see 'external-data'"
    assert report.model.bytes <= path.stat().st_size + 3


def test_one_missing_file_is_said_once(save: Make) -> None:
    content = beside("nowhere.bin")
    again = content.graph.initializer.add()
    again.CopyFrom(content.graph.initializer[0])
    again.name = "d"
    found = only(save(content), "external-data")
    assert (found.places, found.measured) == (("c", "d"), 2)


@pytest.mark.parametrize(
    ("content", "ort", "why"),
    [
        (model(opsets=(("", 21),), ir=10), "1.16", "ONNX Runtime 1.16 does not read opset 21 of ai.onnx"),
        (model(ir=10), "1.17.3", "ONNX Runtime 1.17 does not read IR version 10"),
        (model(opsets=(("", 17), ("ai.onnx.ml", 4))), "1.16", "does not read opset 4 of ai.onnx.ml"),
    ],
)
def test_an_opset_that_the_device_does_not_read(content: onnx.ModelProto, ort: str, why: str, save: Make) -> None:
    found, *others = judge(save(content), "opset", opset={"ort": ort}).findings
    assert {f.status for f in (found, *others)} == {"failed"}
    assert why in found.why
    assert isinstance(found.measured, int)
    assert isinstance(found.limit, int)
    assert f"export it with {found.limit} at most" in found.remedy


def test_a_release_that_is_not_set_up_is_not_passed(
    save: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    by_table, by_running = judge(save(model()), "opset", opset={"ort": "1.16"}).findings
    assert (by_table.status, by_table.why) == ("passed", "ONNX Runtime 1.16 reads opset 17 of ai.onnx, IR version 8")
    assert by_running.status == "not run"
    assert "it was not run in ONNX Runtime 1.16" in by_running.why
    assert "onnxopt targets setup ort-1.16" in by_running.remedy


@pytest.mark.parametrize(("whole", "status"), [(True, "passed"), (False, "not run")])
def test_a_release_that_is_set_up_runs_the_model(
    whole: bool, status: str, save: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    installed = onnxruntime.__version__
    folder = runtime_folder(installed)
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"python": python_version(), "onnxruntime": installed}))
    site = Path(onnxruntime.__file__).parents[1] if whole else tmp_path / "empty"
    (folder / "site").symlink_to(site)
    *_, found = judge(save(model()), "opset", opset={"ort": installed}).findings
    assert found.status == status
    assert ("it loads and runs in" if whole else "lacks what the runner needs") in found.why, found.why


def test_releases_that_nobody_knows(save: Make) -> None:
    path = save(model())
    old, *_ = judge(path, "opset", opset={"ort": "1.2"}).findings
    assert (old.status, old.why) == ("not run", "what ONNX Runtime 1.2 reads is not known")
    future = judge(save(model(opsets=(("", 99),))), "opset", opset={"ort": "7.0"}).findings
    assert "it is newer than this check" in future[0].why
    with pytest.raises(SpecError, match=r"'new' is no release of ONNX Runtime; write for example 1\.16"):
        judge(path, opset={"ort": "new"})


def test_what_the_installed_release_does_not_read_is_told_once(save: Make) -> None:
    assert failed(save(model(opsets=(("", 99),)))).keys() == {"opset"}
    assert failed(save(model(ir=99))).keys() == {"opset"}
    unread, _ = judge(save(model(opsets=(("", 99),))), "operators").findings
    assert (unread.status, unread.why.endswith("see 'opset'")) == ("not run", True)


def test_operators_without_a_kernel(save: Make) -> None:
    hostile = "\x1b[31m]]><b>\n::error::"
    found = only(
        save(model(node("Secret", ["x"], ["y"], domain="corp", name=hostile), opsets=(("", 17), ("corp", 1)))),
        "operators",
    )
    assert (found.status, found.places) == ("failed", (hostile,))
    assert "corp:Secret(-1) is not a registered function/op" in found.why
    as_half = node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16)
    back = node("Cast", ["e"], ["y"], to=TensorProto.FLOAT)
    untyped = only(save(model(as_half, node("Erf", ["h"], ["e"], name="erf"), back)), "operators")
    assert (untyped.status, untyped.places) == ("failed", ("erf",))


def test_forbidden_operators(save: Make) -> None:
    path = save(model(node("Abs", ["x"], ["a"], name="abs"), node("Relu", ["a"], ["y"])))
    bad, loads = judge(path, "operators", operators={"forbid": ["Abs", "Loop", "com.microsoft:Gelu"]}).findings
    assert (bad.status, bad.why) == ("failed", "1 node of a forbidden operator: Abs")
    assert (bad.places, bad.measured) == (("abs",), 1)
    assert loads.status == "passed"
    good, _ = judge(path, "operators", operators={"forbid": ["Loop"]}).findings
    assert (good.status, good.why) == ("passed", "none of the forbidden operators: Loop")


def test_a_provider_that_is_not_installed_is_not_run(save: Make) -> None:
    absent = next(n for n in ("qnn", "cuda") if not any(n in p.lower() for p in onnxruntime.get_available_providers()))
    found = only(save(model()), "operators", operators={"providers": [absent]})
    assert found.status == "not run"
    assert "has no" in found.why


def test_size(save: Make) -> None:
    path = save(beside("w.bin"))
    (path.parent / "w.bin").write_bytes(bytes(8))
    size = path.stat().st_size + 8
    assert only(path, "size").status == "not run"
    assert only(path, "size", size={"max": size}).status == "passed"
    found = only(path, "size", size={"max": size - 1})
    assert (found.status, found.measured, found.limit) == ("failed", size, size - 1)


def test_provenance_by_what_the_model_says(save: Make) -> None:
    content = model()
    assert only(save(content), "provenance").status == "not run"
    assert only(save(content), "provenance", provenance={"required": True}).status == "failed"
    for key, value in (("version", "0.1.0"), ("recipe", "quant"), ("verdict", "forced")):
        content.metadata_props.add(key=f"onnxopt.{key}", value=value)
    found = only(save(content), "provenance", provenance={"required": True})
    assert (found.status, found.why) == ("passed", "it says that onnxopt 0.1.0 made it by 'quant': forced")
    content.metadata_props[-1].value = "not validated"
    assert only(save(content), "provenance", provenance={"required": True}).status == "failed"


@pytest.mark.parametrize(
    ("verdict", "own", "why"),
    [
        ("accepted", True, ""),
        ("forced", True, ""),
        ("rejected", True, "says 'rejected'"),
        ("accepted", False, "is about another file"),
        ("accepted", None, "is of no result"),
    ],
)
def test_provenance_by_a_report(verdict: str, own: bool | None, why: str, save: Make) -> None:
    path = save(model())
    digest = io.sha256(path) if own else "0" * 64
    output = None if own is None else {"path": "m.onnx", "sha256": digest, "bytes": 1, "parameters": 1, "macs": None}
    content = {"schema": "onnxopt-report-1", "verdict": verdict, "versions": {}, "machine": {}, "output": output}
    (path.parent / "report.json").write_text(json.dumps(content))
    found = only(path, "provenance", provenance={"accepted": "report.json"})
    assert found.status == ("failed" if why else "passed")
    assert why in found.why


def test_a_report_that_is_none_fails_only_its_check(save: Make) -> None:
    path = save(model())
    (path.parent / "report.json").write_text("{")
    report = judge(path, provenance={"accepted": "report.json"})
    assert {f.check: f.why for f in report.findings if f.status == "failed"} == {
        "provenance": f"{path.parent / 'report.json'} is not JSON"
    }


def test_what_was_not_run_fails_where_the_policy_says_so(save: Make) -> None:
    path = save(model())
    assert judge(path, "structure", "size").verdict == "passed"
    strict = {"only": ["structure", "size"], "not-run": "fail"}
    assert check(Subject(path), Policy().with_tables({"checks": strict}, path.parent)).verdict == "failed"


def test_what_is_no_fault_of_the_model(save: Make, tmp_path: Path) -> None:
    path = save(model())
    with pytest.raises(ModelError, match="is no file that is there"):
        judge(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match="is a folder: name a file in it"):
        judge(tmp_path)
    with pytest.raises(ModelError, match="is no file that is there"):
        judge(path, accuracy={"reference": "float.onnx"})
    with pytest.raises(DataError, match="is not there"):
        check(Subject(path, data="nothing.npz"), Policy())
    for tables in ({"targets": {"run": "x68"}}, {"latency": {"target": "x68"}}, {"saturation": {"target": "x68"}}):
        with pytest.raises(SpecError, match="no target is named 'x68'"):
            judge(path, **tables)
    with pytest.raises(TargetError, match="is required, but not available"):
        judge(path, targets={"require": "native+armnn"})


def test_a_bug_is_not_taken_for_a_failure(save: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[Finding]:
        raise KeyError("bug")

    run = type(CHECKS[0])
    monkeypatch.setattr("onnxopt.deploy.run.CHECKS", (run("size", "", broken),))
    with pytest.raises(KeyError, match="bug"):
        judge(save(model()))
