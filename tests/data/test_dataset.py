"""Datasets: what every source gives, how samples become feeds, and each way in which data does not fit."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.data import files
from onnxopt.data.batching import Batching
from onnxopt.data.dataset import Dataset, from_feeds, open_dataset, spread
from onnxopt.errors import DataError
from onnxopt.graph.signature import TensorSpec


def spec(name: str = "x", *shape: int | str | None, dtype: Any = np.float32) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


IMAGE = spec("x", "N", 3, 8, 8)
ROW = spec("x", "N", 4)
PAIR = (spec("ids", "batch", "seq", dtype=np.int64), spec("mask", "batch", "seq", dtype=np.int64))
RECURRENT = (spec("input", 1, "time"), spec("h", 2, 1, 3))


def saved(folder: Path, name: str = "data.npz", **arrays: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def rows(n: int, width: int = 4) -> np.ndarray:
    return np.arange(n * width, dtype=np.float32).reshape(n, width)


def joined(dataset: Dataset, size: int, **limits: int) -> dict[str, np.ndarray]:
    feeds = list(dataset.batches(size, **limits))
    return {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}


# Sources


def test_npz_with_named_arrays_and_labels(tmp_path: Path) -> None:
    path = saved(tmp_path, ids=np.ones((5, 7), np.int64), mask=np.ones((5, 7), np.int64), labels=np.arange(5))
    dataset = open_dataset(path, PAIR)
    assert (dataset.count, dataset.source, dataset.synthetic, dataset.notes) == (5, "data.npz", False, ())
    assert dataset.labels is not None
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert [f["ids"].shape for f in dataset.batches(2)] == [(2, 7), (2, 7), (1, 7)]


@pytest.mark.parametrize("key", ["labels", "label", "y"])
def test_one_array_of_any_name_feeds_the_one_input(tmp_path: Path, key: str) -> None:
    dataset = open_dataset(saved(tmp_path, features=rows(3), **{key: np.array([[2], [0], [1]])}), [ROW])
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [2, 0, 1]
    assert dataset.notes == ("the array 'features' feeds the input 'x'",)


def test_an_input_may_be_named_like_labels(tmp_path: Path) -> None:
    dataset = open_dataset(saved(tmp_path, y=rows(3)), [spec("y", "N", 4)])
    assert dataset.labels is None
    assert dataset.count == 3


def test_what_is_no_list_of_classes_is_not_taken_for_labels(tmp_path: Path) -> None:
    dataset = open_dataset(saved(tmp_path, x=rows(3), y=rows(3)), [ROW])
    assert dataset.labels is None
    assert dataset.notes == ("'y' is float32[3,4], no list of class numbers, so there are no labels",)


def test_npy_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(6))
    (feed,) = open_dataset(tmp_path / "x.npy", [ROW]).batches(6)
    np.testing.assert_array_equal(feed["x"], rows(6))
    assert not feed["x"].flags.owndata
    assert not feed["x"].flags.writeable


def test_folder_of_files_with_one_or_many_samples(tmp_path: Path) -> None:
    folder = tmp_path / "feeds"
    saved(folder, "a.npz", x=rows(3), labels=[1, 2, 3])
    saved(folder, "b.npz", x=rows(1)[0], labels=4)
    saved(folder, "sub/c.npz", x=rows(2), labels=[5, 6])
    dataset = open_dataset(folder, [ROW])
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(joined(dataset, 4)["x"], np.concatenate([rows(3), rows(1), rows(2)]))


def test_folder_of_npy_is_labelled_by_name_or_folder(tmp_path: Path) -> None:
    for name in ("7_a", "7_b", "3_c"):
        np.save(tmp_path / f"{name}.npy", rows(1)[0])
    dataset = open_dataset(tmp_path, [ROW])
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [3, 7, 7]
    assert dataset.notes == ("labels are the numbers in the file names",)


def test_running_numbers_of_feeds_are_no_labels(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i:03}_feed.npy", rows(1)[0])
    assert open_dataset(tmp_path, [ROW]).labels is None


def test_labels_in_some_files_only_are_not_used(tmp_path: Path) -> None:
    saved(tmp_path, "a.npz", x=rows(3), labels=[1, 2, 3])
    saved(tmp_path, "b.npz", x=rows(1))
    dataset = open_dataset(tmp_path, [ROW])
    assert dataset.labels is None
    assert "1 of 2 files or feeds have labels, so none are used" in dataset.notes


FUNCTIONS = """
import numpy as np
def dicts():
    for i in range(5):
        yield {"x": np.full((2, 4), i, np.float32)}
def labelled():
    for i in range(5):
        yield {"x": np.full((2, 4), i, np.float32)}, [i, i + 10]
def alone():
    buffer = np.empty(4, np.float32)
    for i in range(5):
        buffer[:] = i
        yield buffer, i
def endless():
    while True:
        yield np.zeros((1, 4), np.float32)
def broken():
    yield np.zeros((1, 4), np.float32)
    raise RuntimeError("no disk")
def objects():
    yield {"x": object()}
def ragged():
    yield {"x": [[1.0], [1.0, 2.0]]}
def nothing():
    return iter(())
number = 3
class Reader:
    @staticmethod
    def feeds():
        return [np.zeros((1, 4), np.float32)]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"feeds_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return name


def test_function_of_dicts(module: str) -> None:
    dataset = open_dataset(f"{module}:dicts", [ROW])
    assert (dataset.count, dataset.labels, dataset.source) == (10, None, f"{module}:dicts")
    assert joined(dataset, 3)["x"][:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_function_of_feeds_and_labels(module: str) -> None:
    dataset = open_dataset(f"{module}:labelled", [ROW], samples=5)
    assert dataset.count == 5
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 10, 1, 11, 2]


def test_function_of_single_arrays_that_share_a_buffer(module: str) -> None:
    dataset = open_dataset(f"{module}:alone", [ROW])
    assert joined(dataset, 2)["x"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert open_dataset(f"{module}:Reader.feeds", [ROW]).count == 1


def test_endless_function_is_bounded(module: str) -> None:
    assert open_dataset(f"{module}:endless", [ROW], samples=7).count == 7
    dataset = open_dataset(f"{module}:endless", [ROW])
    assert dataset.count == 1024
    assert dataset.notes == (f"only the first 1024 feeds of {module}:endless are taken; give samples for more",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"broken failed: RuntimeError: no disk \(.*\.py, line 19\)"),
        ("missing", "failed: AttributeError"),
        ("objects", "feed 0: x is object, not numbers; yield arrays"),
        ("ragged", "feed 0: x is no array"),
        ("nothing", r"yields nothing; the model takes x: float32\[N,4\]"),
        ("number", "gives int; it must yield arrays or dicts of arrays"),
    ],
)
def test_function_that_does_not_yield_feeds(module: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(f"{module}:{name}", [ROW])


def test_module_that_is_not_there() -> None:
    with pytest.raises(DataError, match="no_such_module:f failed: ModuleNotFoundError"):
        open_dataset("no_such_module:f", [ROW])


def test_feeds_in_memory() -> None:
    dataset = from_feeds([{"x": rows(2)}, (rows(1), [3])], [ROW], source="mine")
    assert (dataset.source, dataset.count, dataset.labels) == ("mine", 3, None)


def test_text_inputs() -> None:
    words = TensorSpec("x", np.dtype(object), ("N", 2))
    dataset = from_feeds([np.array([["a", "b"], ["c", "d"]])], [words])
    (feed,) = dataset.batches(8)
    assert feed["x"].dtype == object
    assert feed["x"].tolist() == [["a", "b"], ["c", "d"]]
    assert len(dataset.digest) == 64


# Samples to feeds


@pytest.mark.parametrize(
    ("inputs", "batching"),
    [
        ([IMAGE], Batching(whole=False)),
        ([spec("x", 1, 3, 8, 8)], Batching(whole=False, fixed=1)),
        ([spec("x", 8, 4)], Batching(whole=False, fixed=8)),
        ([spec("x", None, 4), spec("z", "unk__7", 2)], Batching(whole=False)),
        (PAIR, Batching(whole=False)),
        ([IMAGE, spec("threshold")], Batching(whole=False)),
        (RECURRENT, Batching(whole=True)),
        ([spec("x", "seq", "batch", 5)], Batching(whole=True)),
        ([spec("x", "sequence_length", 5)], Batching(whole=True)),
        ([spec("x", 3, "height", "width")], Batching(whole=True)),
        ([spec("x", "N", 4), spec("points", "points", 2)], Batching(whole=True)),
        ([spec("a")], Batching(whole=True)),
        ([], Batching(whole=True)),
        ([TensorSpec("x", np.dtype("f4"), None)], Batching(whole=False)),
    ],
)
def test_which_axis_counts_samples(inputs: list[TensorSpec], batching: Batching) -> None:
    assert Batching.of(inputs) == batching


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    size=st.integers(1, 12),
    start=st.integers(0, 12),
    stop=st.integers(0, 30),
)
def test_batches_of_any_size_join_to_the_same_arrays(lengths: list[int], size: int, start: int, stop: int) -> None:
    whole = rows(sum(lengths))
    dataset = from_feeds(np.split(whole, np.cumsum(lengths)[:-1]), [ROW])
    feeds = list(dataset.batches(size, start=start, stop=stop))
    expected = whole[start:stop]
    assert [len(f["x"]) for f in feeds[:-1]] == [size] * max(len(feeds) - 1, 0)
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in feeds]) if feeds else whole[:0], expected)


@settings(max_examples=40, deadline=None)
@given(total=st.integers(1, 40), size=st.integers(1, 9), batch=st.integers(1, 5), stop=st.integers(1, 40))
def test_a_fixed_batch_is_kept(total: int, size: int, batch: int, stop: int) -> None:
    feeds = [rows(total)]
    if total < batch:
        with pytest.raises(DataError, match=f"{total} samples are too few, the graph takes {batch} at once"):
            from_feeds(feeds, [spec("x", batch, 4)])
        return
    dataset = from_feeds(feeds, [spec("x", batch, 4)])
    assert dataset.count == total - total % batch
    assert {len(f["x"]) for f in dataset.batches(size)} == {batch}
    np.testing.assert_array_equal(joined(dataset, size)["x"], rows(dataset.count))
    widened = joined(dataset, size, stop=stop)["x"]
    assert len(widened) == min(-(-stop // batch) * batch, dataset.count)
    if total % batch:
        assert (
            f"the last {total % batch} of {total} samples are left out: the graph fixes a batch of {batch}"
            in dataset.notes
        )


def test_samples_of_different_shapes_share_no_batch() -> None:
    inputs = [spec("x", "N", "seq")]
    dataset = from_feeds([rows(2, 3), rows(1, 3), rows(3, 5)], inputs)
    assert dataset.count == 6
    assert [f["x"].shape for f in dataset.batches(4)] == [(3, 3), (3, 5)]
    with pytest.raises(DataError, match="samples of different shapes cannot share the fixed batch of 2"):
        list(from_feeds([rows(1, 3), rows(1, 5)], [spec("x", 2, "seq")]).batches(2))


def test_whole_feeds_come_alone(tmp_path: Path) -> None:
    sound, state = rows(5, 9)[:, None], np.zeros((2, 1, 3), np.float32)
    dataset = open_dataset(saved(tmp_path, input=sound, h=state, labels=np.arange(5)), RECURRENT)
    feeds = list(dataset.batches(4))
    assert len(feeds) == dataset.count == 5
    assert {f["input"].shape for f in feeds} == {(1, 9)}
    assert {f["h"].shape for f in feeds} == {(2, 1, 3)}
    np.testing.assert_array_equal(feeds[3]["input"], sound[3])
    assert dataset.split()[0].count == 4


def test_one_whole_feed(tmp_path: Path) -> None:
    (feed,) = open_dataset(saved(tmp_path, input=rows(1, 9), h=np.zeros((2, 1, 3))), RECURRENT).batches(1)
    assert feed["input"].shape == (1, 9)
    (feed,) = open_dataset(saved(tmp_path, input=rows(1, 9)[0], h=np.zeros((2, 1, 3))), RECURRENT).batches(1)
    assert feed["input"].shape == (1, 9)


def test_a_sample_without_batch_axis_and_stacked_feeds() -> None:
    dataset = from_feeds([rows(1)[0], rows(6).reshape(3, 2, 4)], [ROW])
    assert dataset.count == 7
    np.testing.assert_array_equal(joined(dataset, 9)["x"], np.concatenate([rows(1), rows(6)]))


def test_numbers_beside_batches(tmp_path: Path) -> None:
    inputs = [ROW, spec("scale")]
    saved(tmp_path, "a.npz", x=rows(3), scale=np.float32(2))
    saved(tmp_path, "b.npz", x=rows(1), scale=np.array([2], np.float32))
    saved(tmp_path, "c.npz", x=rows(2), scale=np.float32(5))
    feeds = list(open_dataset(tmp_path, inputs).batches(8))
    assert [(f["x"].shape, float(f["scale"]), f["scale"].shape) for f in feeds] == [((4, 4), 2, ()), ((2, 4), 5, ())]


def test_unknown_rank_is_taken_as_it_comes() -> None:
    (feed,) = from_feeds([np.ones((3, 2, 2), np.float32)], [TensorSpec("x", np.dtype("f4"), None)]).batches(8)
    assert feed["x"].shape == (3, 2, 2)


def test_dims_fix_named_dimensions(tmp_path: Path) -> None:
    path = saved(tmp_path, x=rows(5))
    assert [len(f["x"]) for f in open_dataset(path, [ROW], dims={"N": 2}).batches(9)] == [2, 2]
    with pytest.raises(DataError, match=r"no dimension is named 'M'; there is 'N'; the model takes x: float32\[N,4\]"):
        open_dataset(path, [ROW], dims={"M": 2})
    with pytest.raises(DataError, match="dimension 'N' cannot have size 0"):
        open_dataset(path, [ROW], dims={"N": 0})


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_holds_something(size: int) -> None:
    with pytest.raises(DataError, match="a batch cannot hold"):
        next(from_feeds([rows(1)], [ROW]).batches(size))


# Choosing samples


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 500), share=st.floats(0.01, 1), seed=st.integers(0, 9))
def test_spread_takes_one_of_each_stretch(total: int, share: float, seed: int) -> None:
    count = max(1, int(total * share))
    chosen = spread(total, count, seed)
    assert np.unique(chosen).size == count
    edges = np.arange(count + 1) * total // count
    assert ((edges[:-1] <= chosen) & (chosen < edges[1:])).all()


def test_samples_cover_sorted_and_cyclic_classes(tmp_path: Path) -> None:
    for name, labels in (("sorted", np.repeat(np.arange(10), 20)), ("cyclic", np.tile(np.arange(10), 20))):
        dataset = open_dataset(saved(tmp_path, f"{name}.npz", x=rows(200), labels=labels), [ROW], samples=60)
        assert dataset.labels is not None
        assert np.unique(dataset.labels).size == 10
        assert dataset.notes == ("60 of 200 samples, one from each of 60 equal stretches (seed 0)",)
        np.testing.assert_array_equal(joined(dataset, 7)["x"], rows(200)[dataset.rows])
    assert open_dataset(tmp_path / "sorted.npz", [ROW], samples=500).count == 200


def test_samples_must_be_some(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot take 0 samples"):
        open_dataset(tmp_path, [ROW], samples=0)


@settings(max_examples=60, deadline=None)
@given(total=st.integers(2, 60), batch=st.integers(1, 4), fraction=st.floats(0.01, 0.99))
def test_split_parts_all_samples(total: int, batch: int, fraction: float) -> None:
    total = max(total // batch, 2) * batch
    dataset = from_feeds([rows(total)], [spec("x", batch, 4)])
    calibration, held_out = dataset.split(fraction)
    assert np.array_equal(np.sort(np.concatenate([calibration.rows, held_out.rows])), np.arange(total))
    assert min(calibration.count, held_out.count) >= batch
    assert abs(held_out.count - total * fraction) <= batch
    assert np.array_equal(dataset.split(fraction)[1].rows, held_out.rows)


def test_split_of_one_sample() -> None:
    calibration, held_out = from_feeds([rows(1)], [ROW]).split()
    assert calibration is held_out
    assert calibration.notes == (
        "too few samples to hold any out, so the model is judged on what it was calibrated with",
    )


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_split_takes_a_fraction(fraction: float) -> None:
    with pytest.raises(DataError, match="the held-out fraction must be between 0 and 1"):
        from_feeds([rows(3)], [ROW]).split(fraction)


def test_subset_keeps_the_order_asked_for() -> None:
    dataset = from_feeds([(rows(3), [5, 6, 7]), (rows(3) + 100, [8, 9, 10])], [ROW])
    chosen = dataset.subset([5, 0, 1])
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [10, 5, 6]
    assert joined(chosen, 2)["x"][:, 0].tolist() == [108, 0, 4]
    assert dataset.subset(np.array([1, 2])).subset([1]).rows.tolist() == [2]
    with pytest.raises(DataError, match="0 samples are too few"):
        dataset.subset([])


# Digest


def test_digest_follows_content_only(tmp_path: Path) -> None:
    first = open_dataset(saved(tmp_path, "a.npz", x=rows(5)), [ROW])
    assert first.digest == open_dataset(saved(tmp_path, "b.npz", x=rows(5)), [ROW]).digest
    assert len(first.digest) == 64
    other = rows(5)
    other[4, 3] += 1
    digests = {
        first.digest,
        open_dataset(saved(tmp_path, "c.npz", x=other), [ROW]).digest,
        first.subset([0, 1]).digest,
        first.subset([1, 0]).digest,
        open_dataset(tmp_path / "a.npz", [spec("x", "N", 4, dtype=np.float16)]).digest,
    }
    assert len(digests) == 5


# Data that does not fit


@pytest.mark.parametrize(
    ("inputs", "arrays", "message"),
    [
        (
            PAIR,
            {"ids": np.ones((2, 3), int)},
            r"no array for the input 'mask'; the model takes ids: int64\[batch,seq\], mask: int64\[batch,seq\], "
            r"given ids: int64\[2,3\]; name the arrays like the inputs",
        ),
        ([ROW], {"x": rows(2), "z": rows(2)}, r"no input named 'z'; the model takes x: float32\[N,4\]"),
        ([ROW], {"a": rows(2), "z": rows(2)}, "no array for the input 'x', no input named 'a', 'z'"),
        ([ROW], {}, "given nothing"),
        (
            [ROW],
            {"x": rows(2, 5)},
            r"the model takes x: float32\[N,4\], given float32\[2,5\]; a size is 5 where the graph fixes 4",
        ),
        ([ROW], {"x": np.ones((1, 1, 2, 4), "f4")}, r"given float32\[1,1,2,4\]; its shape must be \[samples,4\]"),
        ([ROW], {"x": np.float32(3)}, r"given float32\[\]; its shape must be \[samples,4\]"),
        ([ROW], {"x": np.ones((2, 4), int)}, r"given int64\[2,4\]; save it as float32"),
        ([ROW], {"x": np.ones((2, 4), complex)}, "save it as float32"),
        ([spec("x", "N", 4, dtype=np.int64)], {"x": rows(2)}, "save it as int64"),
        (
            [IMAGE],
            {"x": np.ones((2, 8, 8, 3), "u1")},
            r"given uint8\[2,8,8,3\]; say how pixels become inputs: --preprocess imagenet, ",
        ),
        ([ROW], {"x": rows(0)}, r"holds no samples; the model takes x: float32\[N,4\]"),
        (PAIR, {"ids": np.ones((2, 3), int), "mask": np.ones((4, 3), int)}, "'ids' has 2, 'mask' has 4 samples"),
        (
            PAIR,
            {"ids": np.ones((2, 3), int), "mask": np.ones((2, 4), int)},
            "dimension 'seq' is 3 in 'ids' and 4 in 'mask'",
        ),
        ([ROW], {"x": rows(2), "labels": np.arange(3)}, "3 values in 'labels' for 2 samples"),
        (
            [ROW, spec("k")],
            {"x": rows(2), "k": np.ones(2, "f4")},
            r"takes k: float32\[\], given float32\[2\]; give one number for all",
        ),
        (
            RECURRENT,
            {"input": rows(1), "h": np.ones(3, "f4")},
            r"takes h: float32\[2,1,3\], given float32\[3\]; give an array of that",
        ),
        (RECURRENT, {"input": rows(2), "h": np.ones((2, 1, 3), "f4")}, "a size is 2 where the graph fixes 1"),
        (
            RECURRENT,
            {"input": np.ones((5, 1, 9), "f4"), "h": np.ones((4, 2, 1, 3), "f4")},
            "'input' has 5, 'h' has 4 samples",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, inputs: Any, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(saved(tmp_path, **arrays), inputs)
    assert str(caught.value).startswith(str(tmp_path / "data.npz"))
    assert "\n" not in str(caught.value)


def test_npy_for_a_model_of_two_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(2))
    with pytest.raises(DataError, match=r"no array for the input 'ids', 'mask'; .* given one array: float32"):
        open_dataset(tmp_path / "x.npy", PAIR)


@pytest.mark.parametrize(
    ("have", "want", "note"),
    [
        (np.float64, np.float32, "'x' is converted from float64 to float32"),
        (np.float32, np.float16, "'x' is converted from float32 to float16"),
        (np.int32, np.int64, "'x' is converted from int32 to int64"),
        (np.bool_, np.int64, "'x' is converted from bool to int64"),
        (np.int64, np.bool_, "'x' is converted from int64 to bool"),
        (">f4", np.float32, None),
    ],
)
def test_safe_conversions(have: Any, want: Any, note: str | None) -> None:
    values = np.array([[0, 1, 1, 0]]).astype(have)
    dataset = from_feeds([values, values], [spec("x", "N", 4, dtype=want)])
    assert dataset.notes == ((note,) if note else ())
    (feed,) = dataset.batches(2)
    assert feed["x"].dtype == np.dtype(want)
    assert feed["x"].tolist() == np.array([[0, 1, 1, 0]] * 2).astype(want).tolist()


@pytest.mark.parametrize(
    ("value", "want"),
    [(np.float64(1e300), np.float32), (np.int64(300), np.uint8), (np.int64(-1), np.uint8), (np.int64(2), np.bool_)],
)
def test_values_that_do_not_fit_the_type(value: Any, want: Any) -> None:
    dataset = from_feeds([np.full((1, 4), value)], [spec("x", "N", 4, dtype=want)])
    with pytest.raises(
        DataError, match=r"feed 0: the value .* does not fit into the input x: .*; give values of its type"
    ):
        next(dataset.batches(1))


def test_nan_and_infinity_pass() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0]])
    (feed,) = from_feeds([values], [ROW]).batches(1)
    np.testing.assert_array_equal(feed["x"], values.astype(np.float32))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.npz", "the data 'missing.npz' is not there; give a .npz"),
        ("notes.txt", "the data 'notes.txt' is no file that samples are read from; give a .npz"),
        ("empty", "holds no samples: no .npz, .npy, .bmp, .jpeg"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("hello")
    Path("empty").mkdir()
    with pytest.raises(DataError, match=message):
        open_dataset(source, [ROW])


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}, []], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"x\.npy holds Python objects, which are never loaded"):
        open_dataset(tmp_path / "x.npy", [ROW])
    np.savez(tmp_path / "x.npz", x=np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"x\.npz, array 'x' holds Python objects"):
        open_dataset(tmp_path / "x.npz", [ROW])


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_files_cut_short(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        np.savez(file, x=rows(99)) if name == "x.npz" else np.save(file, rows(99))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=rf"{name}"):
        open_dataset(path, [ROW])


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, x=rows(99))
    content = bytearray(path.read_bytes())
    content[500] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*data\.npz: BadZipFile.*is it a whole \.npz file\?"):
        next(open_dataset(path, [ROW]).batches(1))


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(2))
    content = (tmp_path / "x.npy").read_bytes().replace(b"(2, 4), ", b"(2000, 4), ", 1)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content[:118].replace(b"   ", b"", 1) + content[118:])
    with pytest.raises(DataError, match=r"array 'x' is cut short: float32\[2000,4\] needs more than"):
        open_dataset(tmp_path / "x.npz", [ROW])


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_BYTES", 200)
    with pytest.raises(DataError, match=r"array 'x' unpacks to 1712 bytes; save it as \.npy"):
        open_dataset(saved(tmp_path, x=rows(99)), [ROW])


def test_a_folder_of_both_kinds(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(2))
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds images \(x.jpg\) and arrays \(x.npy\); keep them apart"):
        open_dataset(tmp_path, [ROW])


def test_scalar_inputs_are_fed_as_arrays() -> None:
    dataset = open_dataset(None, [TensorSpec("x", np.dtype(np.float32), ())])
    (feed,) = dataset.batches(1, stop=1)
    assert isinstance(feed["x"], np.ndarray)
    assert feed["x"].shape == ()
