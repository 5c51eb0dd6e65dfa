"""A whole validation, with real sessions."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxopt.check import validate as validate_module
from onnxopt.check.validate import _memory, validate
from onnxopt.data.dataset import Dataset, open_dataset
from onnxopt.errors import ExecutionError, ModelError
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Feed
from onnxopt.progress import silent
from onnxopt.runtime import timing
from onnxopt.runtime.timing import Timing

HEAD = '<ir_version: 9, opset_import: ["" : 17]> '
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_MAX_PAIRS", 10)


def classifier(weights: np.ndarray, batch: str = "N", output: str = "y") -> onnx.ModelProto:
    text = f"g (float[{batch},8] x) => (float[{batch},10] {output}) {{ {output} = MatMul (x, w) }}"
    proto = onnx.parser.parse_model(HEAD + text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights.astype(np.float32), "w"))
    return proto


WEIGHTS = RNG.standard_normal((8, 10))
ORIGINAL = Model.from_proto(classifier(WEIGHTS))
WORSE = Model.from_proto(classifier(WEIGHTS + 0.1 * RNG.standard_normal((8, 10))))


def dataset(folder: Path, count: int = 50, labels: bool = True, model: Model = ORIGINAL) -> Dataset:
    x = np.random.default_rng(1).standard_normal((count, 8)).astype(np.float32)
    extra = {"labels": (x @ WEIGHTS).argmax(1)} if labels else {}
    np.savez(folder / "data.npz", x=x, **extra)
    return open_dataset(folder / "data.npz", model.inputs)


def test_all_figures(tmp_path: Path) -> None:
    found = validate(ORIGINAL, WORSE, dataset(tmp_path))
    assert (found.target, found.samples, found.threads, found.batch) == ("native", 50, 1, 1)
    assert 15 < found.sqnr_db < 25
    assert 0.98 < found.cosine < 1
    assert found.accuracy_reference == 1
    assert found.accuracy == found.agreement
    assert 0.7 < found.accuracy < 1
    assert found.accuracy_top5 is not None
    assert [o.name for o in found.outputs] == ["y"]
    assert found.latency.low_ms <= found.latency_ms == found.latency.median_ms <= found.latency.high_ms
    assert found.speedup_low <= found.speedup <= found.speedup_high
    assert found.peak_memory_bytes is not None
    assert found.peak_memory_reference_bytes is not None
    assert found.notes == ()


def test_files_and_models_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "original.onnx"
    onnx.save(ORIGINAL.to_proto(), path)
    found = validate(str(path), ORIGINAL, dataset(tmp_path, labels=False))
    assert (found.sqnr_db, found.agreement, found.accuracy) == (math.inf, 1, None)


def test_progress_of_every_stage(tmp_path: Path) -> None:
    seen: list[tuple[str, int | None, int]] = []

    def track(items: object, description: str, total: int | None = None) -> object:
        batches: list[Feed] = list(items)  # type: ignore[call-overload]
        seen.append((description, total, len(batches)))
        yield from batches

    validate(ORIGINAL, WORSE, dataset(tmp_path), track=track)  # type: ignore[arg-type]
    assert seen == [
        ("measure memory", None, 2),
        ("load both models", None, 2),
        ("validate", 2, 2),
        ("time both models", None, 3),
    ]


def test_the_batch_that_is_timed(tmp_path: Path) -> None:
    found = validate(ORIGINAL, WORSE, dataset(tmp_path), batch=16, threads=2)
    assert (found.batch, found.threads, found.notes) == (16, 2, ())
    few = validate(ORIGINAL, WORSE, dataset(tmp_path, 5), batch=16)
    assert (few.batch, few.notes) == (5, ("timed at batch 5, not 16: the graph or the data has it so",))


def test_a_batch_that_the_graph_fixes(tmp_path: Path) -> None:
    fixed = Model.from_proto(classifier(WEIGHTS, "5"))
    found = validate(fixed, fixed, dataset(tmp_path, model=fixed))
    assert (found.batch, found.samples, found.agreement, found.accuracy) == (5, 50, 1, 1)
    assert len(found.notes) == 1


def test_outputs_of_other_names(tmp_path: Path) -> None:
    other = Model.from_proto(classifier(WEIGHTS, output="z"))
    with pytest.raises(ModelError, match="the candidate has no output 'y'"):
        validate(ORIGINAL, other, dataset(tmp_path))


def test_a_candidate_that_does_not_run(tmp_path: Path) -> None:
    proto = classifier(WEIGHTS)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    with pytest.raises(ExecutionError, match="cannot load the model"):
        validate(ORIGINAL, Model.from_proto(proto), dataset(tmp_path))


def test_memory_that_cannot_be_measured_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.runtime.local.sys.executable", "/nowhere/python")
    found = validate(ORIGINAL, WORSE, dataset(tmp_path))
    assert found.peak_memory_bytes is None
    assert found.notes == (
        "peak memory not measured: cannot start a process to run the model in: No such file or directory",
    )


def test_a_full_disk_leaves_memory_unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "feeds.npz")

    monkeypatch.setattr("onnxopt.runtime.exchange.np.savez", full)
    feed = {"x": np.zeros((1, 8), np.float32)}
    paths = (tmp_path / "a.onnx", tmp_path / "b.onnx")
    said = "peak memory not measured: [Errno 28] No space left on device: 'feeds.npz'"
    assert _memory(paths, feed, 1, silent) == ((None, None), [said])


def test_what_seems_slower_but_may_not_be_is_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubtful, clear = (Timing(np.ones(1), np.ones(1), speedup, 0.4, 1.1) for speedup in (0.5, 1.05))
    rounds = [doubtful] * 3 + [clear] * 3
    monkeypatch.setattr(validate_module, "interleave", lambda *_, **__: rounds.pop(0))
    found = validate(ORIGINAL, WORSE, dataset(tmp_path))
    assert (rounds, found.speedup, found.speedup_low) == ([], pytest.approx(0.775), 0.4)
    rounds += [clear] * 4
    assert validate(ORIGINAL, WORSE, dataset(tmp_path)).speedup == 1.05
    assert len(rounds) == 1
