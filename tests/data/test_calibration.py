"""One streaming pass: the same result for any batch, continued through a cache, with a note for every oddity."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.data import calibration
from onnxopt.data.cache import Cache, Progress
from onnxopt.data.calibration import calibrate
from onnxopt.data.dataset import Dataset, from_feeds
from onnxopt.data.statistics import Statistics
from onnxopt.errors import OutputError
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Feed, TensorSpec
from onnxopt.numerics.ranges import METHODS, Method
from onnxopt.runtime.session import Session

TENSORS = ("x", "relu", "pooled")


def of(x: np.ndarray, *axes: int | str) -> Dataset:
    """A dataset of the rows of ``x``, for a model with these axes (free ones, if none are given)."""
    spec = TensorSpec("x", x.dtype, axes or ("N", *(None for _ in x.shape[1:])))
    return from_feeds([{"x": x}], [spec])


@dataclass
class Net:
    """A model of three tensors in numpy; counts the samples it ran and can fail before a given one."""

    fail_at: int | None = None
    ran: list[int] = field(default_factory=list)

    def __call__(self, feed: Feed) -> Mapping[str, np.ndarray]:
        if self.fail_at is not None and sum(self.ran) + len(feed["x"]) > self.fail_at:
            raise KeyboardInterrupt
        self.ran.append(len(feed["x"]))
        x = feed["x"]
        return {"x": x, "relu": np.maximum(x, 0), "pooled": x.max(axis=1, keepdims=True)}


def rows(count: int = 40, width: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, size=(count, width)).astype(np.float32)


@given(
    batch=st.integers(1, 41),
    count=st.integers(1, 40),
    seed=st.integers(0, 3),
    method=st.sampled_from(METHODS),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_neither_batch_nor_order_changes_the_result(
    batch: int, count: int, seed: int, method: Method, data: st.DataObject
) -> None:
    x = rows(count, seed=seed)
    order = data.draw(st.permutations(range(count)))
    expected = calibrate(Net(), of(x), TENSORS, method, batch=1)
    found = calibrate(Net(), of(x[list(order)]), TENSORS[::-1], method, batch=batch)
    assert found.ranges == expected.ranges
    assert found.samples == count
    assert found.notes == expected.notes


def test_min_max_is_exact() -> None:
    x = rows()
    found = calibrate(Net(), of(x), TENSORS)
    assert found.ranges["x"] == (x.min(), x.max())
    assert found.ranges["relu"] == (0, x.max())
    assert found.ranges["pooled"] == (min(0, x.max(axis=1).min()), x.max())
    assert found.statistics["x"].count == x.size
    assert found.notes == ()


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_histogram_methods_clip_one_far_outlier(method: Method) -> None:
    x = np.random.default_rng(0).normal(size=(64, 4000)).astype(np.float32)
    x[3, 3] = 40.0
    found = calibrate(Net(), of(x), ["x"], method).ranges["x"]
    assert 3.0 < found.hi < (39.0 if method == "mse" else 30.0)  # one square of 40 still counts for something
    assert -5.0 < found.lo < -3.0


def test_large_tensors_are_sampled_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_VALUES_A_SAMPLE", range(1, 16))
    found = calibrate(Net(), of(rows()), TENSORS, "percentile")
    assert found.notes == (
        "histograms of large tensors count about 16 evenly spread values of each sample; "
        "minimum and maximum are of all values",
    )
    assert found.statistics["x"].exact == calibrate(Net(), of(rows()), TENSORS).statistics["x"].exact


def test_oddities_are_named() -> None:
    x = np.ones((4, 5), np.float32)
    x[1, 2], x[2, :2] = np.nan, np.inf

    def run(feed: Feed) -> dict[str, np.ndarray]:
        return {"x": feed["x"], "empty": feed["x"][:, :0], "broken": feed["x"] * np.float32(np.nan)}

    found = calibrate(run, of(x), ["x", "empty", "broken", "absent"], "mse", batch=3)
    assert found.ranges == {"x": (0.0, 1.0)}
    assert found.statistics["x"].exact == (1.0, 1.0)
    assert found.notes == (
        "absent: never computed (in a branch that this data does not take?), so it has no range",
        "broken: 20 of 20 values are NaN, left out",
        "broken: no finite value, so it has no range",
        "empty: no values at all, so it has no range",
        "x: 1 of 20 values are NaN, left out",
        "x: 2 of 20 values are infinite, left out",
    )


def test_batches_fill_the_memory_meant_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_BATCH_BYTES", 5 * 50 * 4)
    net = Net()
    calibrate(net, of(rows(40, 50)), ["x"])
    assert net.ran[0] == 1  # the first sample alone, to see how large the tensors are
    assert max(net.ran) == 2  # x, relu and pooled of two samples: 808 bytes


@pytest.mark.parametrize("batch", [1, 3, 4, 10, None])
def test_a_batch_that_the_graph_fixes_is_kept_and_counted_once(batch: int | None) -> None:
    x = rows(41)
    dataset = of(x, 4, 50)
    assert dataset.count == 40
    net = Net()
    found = calibrate(net, dataset, ["x"], "percentile", batch=batch)
    assert set(net.ran) == {4}
    assert found.statistics["x"].count == 40 * 50
    assert found.ranges == calibrate(Net(), of(x[:40]), ["x"], "percentile").ranges


def test_samples_that_are_whole_feeds_run_one_by_one() -> None:
    feeds = [{"x": rows(n, 8, seed=n)} for n in (3, 5, 5, 200)]
    dataset = from_feeds(feeds, [TensorSpec("x", np.dtype(np.float32), ("length", 8))])
    net = Net()
    found = calibrate(net, dataset, ["x"], "percentile")
    assert net.ran == [3, 5, 5, 200]
    assert found.statistics["x"].count == 213 * 8
    histogram = found.statistics["x"].histogram
    assert histogram is not None
    assert not histogram.sampled


def test_data_is_not_digested_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dataset, "digest", property(lambda self: pytest.fail("reads all of the data")))
    calibrate(Net(), of(rows()), TENSORS)


def test_nothing_to_watch_runs_nothing() -> None:
    net = Net()
    found = calibrate(net, of(rows()), [])
    assert (net.ran, found.ranges) == ([], {})


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("fail_at", [0, 3, 20, 39])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, method: Method, fail_at: int) -> None:
    dataset, cache = of(rows()), Cache(tmp_path / "cache")
    first, second, third = Net(fail_at=fail_at), Net(), Net()
    with pytest.raises(KeyboardInterrupt):
        calibrate(first, dataset, TENSORS, method, batch=2, cache=cache, key="model")
    found = calibrate(second, dataset, TENSORS, method, batch=2, cache=cache, key="model")
    assert sum(first.ran) + sum(second.ran) == dataset.count
    assert found.ranges == calibrate(Net(), dataset, TENSORS, method).ranges
    again = calibrate(third, dataset, TENSORS, method, batch=2, cache=cache, key="model")
    assert third.ran == []
    assert again.ranges == found.ranges
    assert [p.suffix for p in cache.folder.iterdir()] == [".npz"]


def test_what_is_done_is_stored_while_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_SAVE_EVERY_S", 0.0)
    net, files = Net(), []

    def run(feed: Feed) -> Mapping[str, np.ndarray]:
        files.append(len(list(tmp_path.iterdir())))
        return net(feed)

    calibrate(run, of(rows()), TENSORS, batch=10, cache=Cache(tmp_path))
    assert files == [0, 1, 1, 1]


def test_histogram_methods_share_what_is_cached(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    calibrate(Net(), of(rows()), TENSORS, "mse", cache=cache)
    net = Net()
    assert (
        calibrate(net, of(rows()), TENSORS, "entropy", cache=cache).ranges
        == calibrate(Net(), of(rows()), TENSORS, "entropy").ranges
    )
    assert net.ran == []


@pytest.mark.parametrize("change", ["model", "data", "tensors", "histogram"])
def test_another_model_or_data_does_not_hit_the_cache(tmp_path: Path, change: str) -> None:
    cache, net = Cache(tmp_path), Net()
    calibrate(Net(), of(rows()), TENSORS, cache=cache, key="a")
    dataset = of(rows(seed=1 if change == "data" else 0))
    calibrate(
        net,
        dataset,
        TENSORS[: 2 if change == "tensors" else 3],
        "mse" if change == "histogram" else "minmax",
        cache=cache,
        key="b" if change == "model" else "a",
    )
    assert sum(net.ran) > 0


def damage(path: Path, kind: str) -> None:
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "pickle":
        with path.open("wb") as file:
            np.savez(file, names=np.array([{}], dtype=object))
    else:
        with np.load(path) as archive:
            arrays = dict(archive)
        if kind == "shape":
            arrays["counts"] = arrays["counts"][:, :10]
        elif kind == "exponent":
            arrays["bins"][0, 0] = 10**6
        elif kind == "negative":
            arrays["counts"][0, 0] = -1
        elif kind == "nan":
            arrays["extremes"][0, 0] = np.nan
        elif kind == "missing":
            del arrays["bins"]
        elif kind == "names":
            arrays["names"] = np.frombuffer(b'["x"]', np.uint8)
        elif kind == "done":
            arrays["done"][0] = 10**6
        with path.open("wb") as file:
            np.savez(file, **arrays)


@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "flipped",
        "empty",
        "npy",
        "pickle",
        "shape",
        "negative",
        "exponent",
        "nan",
        "missing",
        "names",
        "done",
    ],
)
def test_a_damaged_cache_is_ignored_noted_and_made_again(tmp_path: Path, kind: str) -> None:
    cache = Cache(tmp_path)
    expected = calibrate(Net(), of(rows()), TENSORS, "mse", cache=cache)
    (file,) = tmp_path.iterdir()
    damage(file, kind)
    net = Net()
    found = calibrate(net, of(rows()), TENSORS, "mse", cache=cache)
    assert found.notes == (f"{file}: damaged cache file, ignored and made again",)
    assert found.ranges == expected.ranges
    assert sum(net.ran) >= 40
    assert calibrate(Net(), of(rows()), TENSORS, "mse", cache=cache).notes == ()


def test_a_cache_that_cannot_be_written_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OutputError, match=r"file: cannot write the cache \(.*\); choose another folder or leave --cache"
    ):
        calibrate(Net(), of(rows()), TENSORS, cache=Cache(tmp_path / "file"))


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    calibrate(Net(), of(rows()), TENSORS, cache=cache)
    (file,) = tmp_path.iterdir()
    file.unlink()
    (file / "in the way").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot write the cache"):
        calibrate(Net(), of(rows()), TENSORS, cache=cache)
    assert list(tmp_path.iterdir()) == [file]


def test_only_all_or_no_histograms_are_stored(tmp_path: Path) -> None:
    mixed = {"a": Statistics.of(np.ones(3)), "b": Statistics.of(np.ones(3), limit=9)}
    with pytest.raises(ValueError, match="either all"):
        Cache(tmp_path).store("key", Progress(1, mixed))
    assert list(tmp_path.iterdir()) == []


def test_cache_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert Cache.of(None) is None
    assert Cache.of(tmp_path) is not None


def test_progress_is_tracked_in_shards() -> None:
    seen: list[tuple[str, int | None]] = []

    def track(items, description, total=None):  # type: ignore[no-untyped-def]  # the protocol's own types, in a test
        seen.append((description, total))
        yield from items

    calibrate(Net(), of(rows()), TENSORS, batch=4, track=track)
    assert seen == [("calibrating", 10)]


BRANCHES = """<ir_version: 10, opset_import: ["": 21]>
g (float[N,3,8,8] x) => (float[N,4,8,8] y, bool c)
<float[4,3,3,3] w> {
    h = Conv <pads = [1, 1, 1, 1]> (x, w)
    zero = Constant <value_float = 0.0> ()
    sum = ReduceSum <keepdims = 0> (h)
    big = Sub (sum, sum)
    c = Greater (big, zero)
    y = If (c) <
        then_branch = one () => (float[N,4,8,8] a) { a = Relu (h) },
        else_branch = two () => (float[N,4,8,8] b) { b = Neg (h) }
    >
    n = Div (big, big)
    flat = Shape (h)
}"""


def test_on_onnx_runtime_with_a_branch_nan_and_integers() -> None:
    model = onnx.parser.parse_model(BRANCHES)
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.extend([onnx.numpy_helper.from_array(weight, "w")])
    x = np.random.default_rng(1).normal(size=(20, 3, 8, 8)).astype(np.float32)
    tensors = ["x", "h", "y", "n", "flat", "c"]
    session = Session(Model.from_proto(model), outputs=tensors)
    several = calibrate(session.run, of(x, "N", 3, 8, 8), tensors, "mse", batch=7)
    single = calibrate(session.run, of(x, "N", 3, 8, 8), tensors, "mse", batch=1)
    assert several.ranges["h"] == single.ranges["h"]
    assert several.statistics["y"].exact == (-several.statistics["h"].maximum, -several.statistics["h"].minimum)
    assert several.statistics["c"].exact == (0, 0)
    assert several.statistics["flat"].maximum == 8
    assert "n" not in several.ranges
    assert several.notes == ("n: 3 of 3 values are NaN, left out", "n: no finite value, so it has no range")
