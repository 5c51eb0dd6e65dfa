"""Made-up data: the statistics of pictures, valid tokens, consistent sizes, and the same figures for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.data.dataset import Dataset, open_dataset
from onnxopt.data.scenery import Scenery
from onnxopt.errors import DataError
from onnxopt.graph.signature import TensorSpec


def spec(name: str, *shape: int | str | None, dtype: Any = np.float32) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


IMAGE = spec("x", "N", 3, 64, 64)
BERT = [spec(name, "batch", "sequence", dtype=np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")]


def first(*inputs: TensorSpec, **options: Any) -> dict[str, np.ndarray]:
    return next(open_dataset("synthetic", inputs, **options).batches(1))


def whole(dataset: Dataset) -> np.ndarray:
    return np.concatenate([f["x"] for f in dataset.batches(16)])


# As a dataset


def test_default_is_loud() -> None:
    dataset = open_dataset(None, [IMAGE])
    assert (dataset.count, dataset.synthetic, dataset.labels) == (64, True, None)
    assert dataset.source == "synthetic (seed 0): natural-looking images"
    assert dataset.notes[0].startswith("SYNTHETIC DATA (seed 0): made-up natural-looking images; figures on real data")


def test_same_seed_same_data_whatever_the_batches() -> None:
    dataset, again, other = (open_dataset(None, [IMAGE], samples=6, seed=s) for s in (1, 1, 2))
    parts = np.concatenate([f["x"] for f in again.batches(4)])
    np.testing.assert_array_equal(whole(dataset), parts)
    np.testing.assert_array_equal(whole(dataset.subset([4, 2])), parts[[4, 2]])
    assert dataset.digest == again.digest != other.digest
    assert not np.array_equal(parts[0], parts[1])


@pytest.mark.parametrize(
    ("samples", "batch", "count"), [(None, 7, 63), (10, 4, 8), (2, 8, 8), (None, 100, 100), (5, 1, 5)]
)
def test_fixed_batches(samples: int | None, batch: int, count: int) -> None:
    dataset = open_dataset(None, [spec("x", batch, 4)], samples=samples)
    assert dataset.count == count
    assert {f["x"].shape for f in dataset.batches(3)} == {(batch, 4)}


# Pictures


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    scenery = Scenery(96, 96, 3)
    return np.stack([scenery.picture(np.random.default_rng(i)) for i in range(48)])


def test_pictures_have_the_spectrum_of_photographs(pictures: np.ndarray) -> None:
    window = np.hanning(96)[:, None] * np.hanning(96)
    luminance = pictures.mean(-1)
    luminance -= luminance.mean((1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(luminance * window)) ** 2).mean(0)
    frequency = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96))
    band = (frequency > 0.03) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert -3.2 < slope < -1.8  # photographs: about -2; white noise: 0


def test_pictures_have_correlated_colours_and_edges(pictures: np.ndarray) -> None:
    colours = np.corrcoef(pictures.reshape(-1, 3).T)
    assert colours[np.triu_indices(3, 1)].min() > 0.6
    steps = np.diff(pictures, axis=2)
    assert (steps**4).mean() / (steps**2).mean() ** 2 > 6  # heavy tails: edges; noise has 3


def test_pictures_fill_the_range(pictures: np.ndarray) -> None:
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert 0.35 < pictures.mean() < 0.55
    assert 0.18 < pictures.std() < 0.32
    assert pictures.dtype == np.float32


@pytest.mark.parametrize("size", [(8, 8), (8, 300), (301, 9)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_any_size(size: tuple[int, int], channels: int) -> None:
    picture = Scenery(*size, channels).picture(np.random.default_rng(0))
    assert picture.shape == (*size, channels)
    assert np.isfinite(picture).all()
    assert picture.std() > 0


@pytest.mark.parametrize(
    ("input_", "shape"),
    [
        (IMAGE, (1, 3, 64, 64)),
        (spec("x", "N", 40, 48, 3), (1, 40, 48, 3)),
        (spec("x", "N", 1, 49, 10), (1, 1, 49, 10)),
        (spec("x", None, None, None, None), (1, 3, 224, 224)),
        (spec("x", "N", "H", "W", 3), (1, 224, 224, 3)),
        (spec("x", 3, "H", "W"), (3, 224, 224)),
        (spec("x", 1, 4, 64, 64), (1, 4, 64, 64)),
    ],
)
def test_image_inputs(input_: TensorSpec, shape: tuple[int, ...]) -> None:
    feed = first(input_)
    assert feed["x"].shape == shape
    assert feed["x"].dtype == np.float32


def test_float_images_are_centred() -> None:
    values = whole(open_dataset(None, [IMAGE]))
    assert abs(values.mean()) < 0.3
    assert 0.8 < values.std() < 1.25


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.uint8, 0, 255), (np.int8, -128, 127)])
def test_images_of_pixels(dtype: Any, low: int, high: int) -> None:
    values = whole(open_dataset(None, [spec("x", "N", 64, 64, 3, dtype=dtype)], samples=16))
    assert values.dtype == dtype
    assert low <= values.min() < low + 10
    assert high - 10 < values.max() <= high


def test_preprocessing_is_applied() -> None:
    raw = whole(open_dataset(None, [IMAGE], samples=8, preprocess="raw"))
    caffe = whole(open_dataset(None, [IMAGE], samples=8, preprocess="caffe"))
    assert raw.min() >= 0
    assert raw.max() > 200
    np.testing.assert_allclose(caffe, raw[:, ::-1] - np.array([104, 117, 123]).reshape(3, 1, 1), atol=1e-4)
    assert first(spec("x", "N", 3, "H", "W"), preprocess="clip")["x"].shape == (1, 3, 224, 224)
    with pytest.raises(DataError, match=r"no input looks like images to preprocess; the model takes x: float32\[N,4\]"):
        open_dataset(None, [spec("x", "N", 4)], preprocess="raw")


# Tokens and the like


def test_tokens_are_valid_and_frequent_ones_frequent() -> None:
    dataset = open_dataset(None, BERT, samples=64)
    feed = next(dataset.batches(64))
    assert {v.shape for v in feed.values()} == {(64, 64)}
    counts = np.bincount(feed["input_ids"].reshape(-1), minlength=100)
    assert counts.size == 100
    assert counts[0] == 0
    assert counts[1] > 3 * counts[20] > 0
    assert feed["attention_mask"].min() == 1
    assert feed["token_type_ids"].max() == 0
    assert dataset.notes[0].startswith("SYNTHETIC DATA (seed 0): made-up tokens")


def test_bounds() -> None:
    values = open_dataset(None, BERT, bounds={"input_ids": 5, "token_type_ids": 2})
    feed = next(values.batches(64))
    assert np.unique(feed["input_ids"]).tolist() == [1, 2, 3, 4]
    assert feed["token_type_ids"].max() == 0
    assert first(spec("position_ids", "N", 64, dtype=np.int64), bounds={"position_ids": 32})["position_ids"].max() == 31
    assert first(spec("x", "N", 64, dtype=np.uint8), bounds={"x": 256})["x"].max() <= ord("z")
    assert first(spec("ids", "N", 8, dtype=np.int64), bounds={"ids": 1})["ids"].max() == 0
    with pytest.raises(DataError, match=r"bounds must be at least 1, not \{'ids': 0\}"):
        open_dataset(None, BERT, bounds={"ids": 0})


@pytest.mark.parametrize(
    ("input_", "expected"),
    [
        (spec("position_ids", "batch", "sequence", dtype=np.int64), np.arange(64)[None]),
        (spec("length", "batch", dtype=np.int64), [64]),
        (spec("sr", dtype=np.int64), 16000),
        (spec("use_cache", 1, dtype=np.bool_), [False]),
        (spec("im_shape", "batch", 2), [[1, 1]]),
        (spec("scale_factor", "batch", 2), [[1, 1]]),
        (spec("iou_threshold", 1), [0.5]),
        (spec("timestep"), 1),
        (spec("mask", "batch", "sequence", dtype=np.bool_), np.ones((1, 64), bool)),
        (spec("mask", "batch", 1, "sequence", "sequence"), np.ones((1, 1, 64, 64))),
        (TensorSpec("question", np.dtype(object), ("batch",)), ["some words"]),
    ],
)
def test_inputs_whose_name_tells(input_: TensorSpec, expected: Any) -> None:
    feed = first(BERT[0], input_)
    np.testing.assert_array_equal(feed[input_.name], expected)
    assert feed[input_.name].dtype == input_.dtype


def test_lengths_where_only_the_batch_is_free() -> None:
    assert first(spec("x", "N", 80, 40), spec("x_length", "N", dtype=np.int32))["x_length"].tolist() == [80]


def test_the_size_of_the_picture_is_told_on() -> None:
    feed = first(spec("image", "N", 3, 320, 416), spec("image_shape", "N", 2))
    assert feed["image_shape"].tolist() == [[320, 416]]


def test_bytes_are_text() -> None:
    text = first(spec("x", "batch", "length", dtype=np.uint8))["x"]
    assert text.shape == (1, 64)
    assert set(text.tobytes()) <= set(b" etaoinshrdlucmfwypvbgkjqxz.,\n")


def test_bool_inputs_are_mixed() -> None:
    assert 0.2 < first(spec("x", "N", 200, dtype=np.bool_))["x"].mean() < 0.8


# Sizes


def test_one_name_has_one_size() -> None:
    decoder = [
        spec("input_ids", "batch_size", "sequence_length", dtype=np.int64),
        spec("attention_mask", "batch_size", "past_sequence_length + sequence_length", dtype=np.int64),
        spec("past_key_values.0.key", "batch_size", 4, "past_sequence_length", 16),
    ]
    feed = first(*decoder)
    assert {n: v.shape for n, v in feed.items()} == {
        "input_ids": (1, 64),
        "attention_mask": (1, 64),
        "past_key_values.0.key": (1, 4, 0, 16),
    }
    feed = first(*decoder, dims={"past_sequence_length": 8, "sequence_length": 1})
    assert feed["past_key_values.0.key"].shape == (1, 4, 8, 16)
    assert feed["attention_mask"].shape == (1, 9)
    assert first(decoder[0], spec("m", "batch_size", "sequence_length + 1", dtype=np.int64))["m"].shape == (1, 65)


# Signals


def test_signals_move_slowly() -> None:
    values = whole(open_dataset(None, [spec("x", "N", 640)]))
    assert abs(values.mean()) < 0.1
    assert 0.9 < values.std() < 1.1
    neighbours = np.corrcoef(values[:, 1:].reshape(-1), values[:, :-1].reshape(-1))[0, 1]
    assert 0.85 < neighbours < 0.95  # white noise: 0


def test_sound_stays_in_range() -> None:
    values = whole(open_dataset(None, [spec("x", "N", "samples")], samples=8))
    assert values.shape == (8, 16384)
    assert np.abs(values).max() < 1
    assert 0.01 < values.std() < 0.3


def test_states_are_small_and_feeds_whole() -> None:
    inputs = [spec("input", 1, "time"), spec("h0", 2, 1, 64)]
    dataset = open_dataset(None, inputs, samples=5)
    feeds = list(dataset.batches(4))
    assert len(feeds) == 5
    assert feeds[0]["input"].shape == (1, 16384)
    assert feeds[0]["h0"].shape == (2, 1, 64)
    assert np.std([f["h0"] for f in feeds]) < 0.5


def test_unknown_rank_and_no_inputs() -> None:
    assert first(TensorSpec("x", np.dtype("f4"), None))["x"].shape == (1,)
    assert list(open_dataset(None, [], samples=2).batches(1)) == [{}, {}]
