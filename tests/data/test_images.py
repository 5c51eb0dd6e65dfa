"""Images: the formula of each preset, geometry, TOML, labels from names, and each way in which an image is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxopt.data.dataset import open_dataset
from onnxopt.data.image_shape import ImageShape
from onnxopt.data.images import PRESETS, Preprocess, as_pixels, file_labels, fit, parse
from onnxopt.errors import DataError, SpecError
from onnxopt.graph.signature import TensorSpec

RAW = PRESETS["raw"]


def spec(*shape: int | str | None, dtype: Any = np.float32, name: str = "x") -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


NCHW = spec("N", 3, 8, 12)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def draw(path: Path, pixels: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def only(source: Path, input_: TensorSpec, preprocess: Preprocess | str | Path | None = RAW) -> np.ndarray:
    (feed,) = open_dataset(source, [input_], preprocess=preprocess).batches(100)
    return feed["x"]


# The formula


FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "imagenet": lambda p: (p / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "imagenet-tf": lambda p: p / 127.5 - 1,
    "mobilenet": lambda p: p / 127.5 - 1,
    "caffe": lambda p: p[..., ::-1] - [104, 117, 123],
    "clip": lambda p: (p / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711],
    "cifar10": lambda p: (p / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616],
    "centered": lambda p: (p - 127) / 128,
    "unit": lambda p: p / 255,
    "raw": lambda p: p,
    "raw-bgr": lambda p: p[..., ::-1],
}


def test_every_preset_has_a_formula() -> None:
    assert set(FORMULAS) == set(PRESETS)


@pytest.mark.parametrize("name", FORMULAS)
def test_preset(tmp_path: Path, name: str) -> None:
    pixels = draw(tmp_path / "a.png", noise(8, 12, 3))
    values = only(tmp_path, NCHW, name)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[0], FORMULAS[name](pixels.astype(float)).transpose(2, 0, 1), atol=2e-5)
    assert values.flags.c_contiguous


def test_layouts_types_and_channels(tmp_path: Path) -> None:
    pixels = draw(tmp_path / "a.png", noise(8, 12, 3))
    np.testing.assert_array_equal(only(tmp_path, spec("N", 8, 12, 3))[0], pixels)
    assert only(tmp_path, spec("N", 3, 8, 12, dtype=np.float16)).dtype == np.float16
    gray = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(only(tmp_path, spec("N", 1, 8, 12))[0, 0], gray)
    np.testing.assert_array_equal(only(tmp_path, spec("N", None, 8, 12), Preprocess(channels="gray"))[0, 0], gray)
    np.testing.assert_array_equal(only(tmp_path, spec("N", None, 8, 12))[0], pixels.transpose(2, 0, 1))


def test_a_lone_image_and_a_batch_of_one(tmp_path: Path) -> None:
    pixels = draw(tmp_path / "a.png", noise(8, 12, 3)).transpose(2, 0, 1)
    np.testing.assert_array_equal(only(tmp_path, spec(3, "height", "width"), Preprocess(crop=(8, 12))), pixels)
    np.testing.assert_array_equal(only(tmp_path, spec(1, 3, 8, 12)), pixels[None])


def test_uint8_inputs_take_pixels_as_they_are(tmp_path: Path) -> None:
    pixels = draw(tmp_path / "a.png", noise(8, 12, 3))
    dataset = open_dataset(tmp_path, [spec("N", 8, 12, 3, dtype=np.uint8)])
    (feed,) = dataset.batches(1)
    np.testing.assert_array_equal(feed["x"][0], pixels)
    assert dataset.notes == ()
    with pytest.raises(DataError, match=r"x: uint8\[N,8,12,3\] takes pixels as they are; use the preprocessing 'raw'"):
        open_dataset(tmp_path, [spec("N", 8, 12, 3, dtype=np.uint8)], preprocess="unit")


def test_no_preprocessing_is_said_loudly(tmp_path: Path) -> None:
    pixels = draw(tmp_path / "a.png", noise(8, 12, 3))
    dataset = open_dataset(tmp_path, [NCHW])
    assert dataset.notes[0].startswith("NO PREPROCESSING WAS GIVEN: pixels are scaled to 0..1 (unit)")
    (feed,) = dataset.batches(1)
    np.testing.assert_allclose(feed["x"][0], pixels.transpose(2, 0, 1) / 255, atol=1e-6)


# Geometry


def ramp(height: int, width: int) -> np.ndarray:
    """Red counts columns, green rows."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, 0 * x], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("preprocess", "shape", "expected"),
    [
        (Preprocess(), (16, 24), (8, 12, 0, 0, 2)),  # halved
        (Preprocess(), (16, 40), (8, 12, 8, 0, 2)),  # halved to cover, then the middle 24 of 40 columns
        (Preprocess(crop=(8, 12)), (16, 40), (8, 12, 14, 4, 1)),  # cut without resizing
        (Preprocess(size=16), (32, 80), (8, 12, 28, 8, 2)),  # short side 16, then the middle
        (Preprocess(size=4), (16, 24), (8, 12, 0, 0, 2)),  # a size that would not cover the input is widened
    ],
)
def test_resize_and_crop(
    tmp_path: Path, preprocess: Preprocess, shape: tuple[int, int], expected: tuple[int, ...]
) -> None:
    draw(tmp_path / "a.png", ramp(*shape))
    height, width, left, top, step = expected
    values = only(tmp_path, NCHW, replace(preprocess, resample="box"))[0]
    assert values.shape == (3, height, width)
    np.testing.assert_allclose(values[0, 0], left + step * np.arange(width) + (step - 1) / 2, atol=0.51)
    np.testing.assert_allclose(values[1, :, 0], top + step * np.arange(height) + (step - 1) / 2, atol=0.51)


def test_small_images_are_enlarged(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", np.full((3, 2, 3), 77, np.uint8))
    np.testing.assert_array_equal(only(tmp_path, NCHW, Preprocess(crop=(8, 12))), np.full((1, 3, 8, 12), 77))


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 40), w=st.integers(1, 40), size=st.none() | st.integers(1, 30), cropped=st.booleans())
def test_any_image_fits_the_input(h: int, w: int, size: int | None, cropped: bool) -> None:
    fitted, _ = fit(Preprocess(size=size, crop=(8, 12) if cropped else None), NCHW)
    assert fitted.resize(noise(2, h, w, 3)).shape == (2, 8, 12, 3)


@pytest.mark.parametrize(
    ("preset", "shape", "size"),
    [
        ("imagenet", ("N", 3, "H", "W"), (224, 224)),
        ("unit", ("N", 3, "H", "W"), (224, 224)),
        ("unit", ("N", 3, 64, "W"), (64, 224)),
        ("imagenet", ("N", 3, 96, 160), (96, 160)),
    ],
)
def test_height_and_width(preset: str, shape: tuple[Any, ...], size: tuple[int, int]) -> None:
    fitted, _ = fit(PRESETS[preset], spec(*shape))
    assert (fitted.height, fitted.width) == size
    assert fit(Preprocess(size=100), spec("N", 3, "H", "W"))[0].item == (3, 100, 100)


def test_what_the_graph_fixes_wins_over_the_crop() -> None:
    fitted, notes = fit(PRESETS["imagenet"], spec("N", 3, 112, 168))
    assert fitted.preprocess.size == 128
    assert fitted.preprocess.crop == (112, 168)
    assert notes == ("the graph fixes images of 112x168: the crop of 224x224 became that, size scales along",)
    assert fit(PRESETS["imagenet"], spec("N", 3, 224, 224))[1] == ()


def test_an_image_of_the_right_size_is_left_alone(tmp_path: Path) -> None:
    pixels = draw(tmp_path / "a.png", noise(8, 12, 3))
    np.testing.assert_array_equal(only(tmp_path, NCHW, Preprocess(size=9, crop=(8, 12)))[0], pixels.transpose(2, 0, 1))


# Which inputs are images


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("N", 3, 224, 224), ("nchw", True)),
        (("N", 224, 224, 3), ("nhwc", True)),
        (("N", 1, 49, 10), ("nchw", True)),
        (("N", 49, 10, 1), ("nhwc", True)),
        (("N", 4, 64, 3), None),
        (("N", 4, 64, 64), ("nchw", True)),
        (("batch", "height", "width", "channels"), ("nhwc", True)),
        (("batch", "num_channels", "height", "width"), ("nchw", True)),
        ((3, "H", "W"), ("nchw", False)),
        ((480, 640, 3), ("nhwc", False)),
        (("N", 80, 3000), None),
        (("N", "points", 3), None),
        (("N", 12, 64, 64), None),
        (("N", 3, 4, 4), None),
        (("N", 3), None),
        (None, None),
    ],
)
def test_which_inputs_are_images(shape: Any, expected: tuple[str, bool] | None) -> None:
    image = ImageShape.of(TensorSpec("pixel_values", np.dtype("f4"), shape))
    assert (None if image is None else (image.layout, image.batched)) == expected


@pytest.mark.parametrize("name", ["past_key_values.0.key", "attention_mask", "hidden_state", "cache", "layer.3.value"])
def test_caches_and_masks_are_no_images(name: str) -> None:
    assert ImageShape.of(spec("N", 4, 16, 64, name=name)) is None


# Labels


@pytest.mark.parametrize(
    ("names", "labels", "note"),
    [
        (["0042_a.png", "0007_b.png"], [7, 42], ("labels are the numbers in the file names",)),
        (["cat/a.png", "dog/b.png", "cat/c/d.png"], [0, 0, 1], ("labels count the folders, sorted by name",)),
        (["3/a.png", "11/b.png"], [11, 3], ("labels are the numbers that name the folders",)),
        (["5/a.png"], [5], ("labels are the numbers that name the folders",)),
        (["images/a.png"], None, ()),
        (["images/3_a.png"], [3], ("labels are the numbers in the file names",)),
        (["a.png", "3_b.png"], None, ()),
        (["cat/a.png", "dog/b.png", "c.png"], None, ()),
        (["12.png"], None, ()),
    ],
)
def test_labels(tmp_path: Path, names: list[str], labels: list[int] | None, note: tuple[str, ...]) -> None:
    for name in names:
        draw(tmp_path / name, noise(8, 12, 3))
    dataset = open_dataset(tmp_path, [NCHW], preprocess=RAW)
    assert (None if dataset.labels is None else dataset.labels.tolist()) == labels
    assert dataset.notes == note
    assert file_labels(tmp_path, sorted(tmp_path.rglob("*.png")))[1] == note


def test_which_files_are_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPEG", "c.png", "d.bmp", "e.webp", "sub/f.png", ".hidden.png"):
        draw(tmp_path / name, noise(8, 12, 3))
    (tmp_path / "list.csv").write_text("a.jpg")
    assert open_dataset(tmp_path, [NCHW], preprocess=RAW).count == 6


def test_modes_of_images(tmp_path: Path) -> None:
    pixels = noise(8, 12, 3)
    for i, mode in enumerate(("RGB", "RGBA", "L", "P", "1", "CMYK", "LA")):
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}")
    assert only(tmp_path, NCHW).shape == (7, 3, 8, 12)


# Images as arrays


@pytest.mark.parametrize(
    "shape", [(5, 9, 14, 3), (5, 3, 9, 14), (9, 14, 3), (3, 9, 14), (5, 9, 14), (9, 14), (5, 9, 14, 1), (5, 9, 14, 4)]
)
def test_arrays_of_pixels_are_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", noise(*shape))
    dataset = open_dataset(tmp_path / "x.npy", [NCHW], preprocess="imagenet")
    assert dataset.count == (5 if shape[0] == 5 else 1)
    assert {f["x"].shape[1:] for f in dataset.batches(2)} == {(3, 8, 12)}


@pytest.mark.parametrize("input_", [NCHW, spec("N", 8, 12, 3), spec(1, 3, 8, 12), spec(3, "H", "W")])
def test_arrays_and_files_give_the_same(tmp_path: Path, input_: TensorSpec) -> None:
    pixels = np.stack([draw(tmp_path / "images" / f"{i}.png", noise(20, 18, 3, seed=i)) for i in range(3)])
    np.savez(tmp_path / "x.npz", x=pixels, labels=[4, 5, 6])
    preprocess = Preprocess(crop=(8, 12), size=10, channels="bgr", scale=0.1, mean=(1.0, 2.0, 3.0))
    arrays = open_dataset(tmp_path / "x.npz", [input_], preprocess=preprocess)
    files = open_dataset(tmp_path / "images", [input_], preprocess=preprocess)
    assert arrays.labels is not None
    for a, b in zip(arrays.batches(2), files.batches(2), strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])


def test_pixels_beside_other_inputs() -> None:
    assert as_pixels(noise(5, 9, 14, 7)) is None
    assert as_pixels(np.zeros((5, 9, 14, 3), np.float32)) is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((2, 3, 8, 12), np.float32),
            "holds no uint8 images; leave the preprocessing out if they are prepared",
        ),
        (
            noise(2, 8, 12, 7),
            r"takes x: float32\[N,3,8,12\], given uint8\[2,8,12,7\]; pixels to preprocess must be uint8\[samples,",
        ),
    ],
)
def test_arrays_that_are_no_pixels(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "x.npy", [NCHW], preprocess="unit")


def test_digest_follows_pixels_and_preprocessing(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", noise(8, 12, 3))
    draw(tmp_path / "b.png", noise(8, 12, 3, seed=1))
    first = open_dataset(tmp_path, [NCHW], preprocess="unit")
    same = open_dataset(tmp_path, [NCHW], preprocess="unit")
    assert first.digest == same.digest
    others = {
        first.subset([0]).digest,
        first.subset([1]).digest,
        open_dataset(tmp_path, [NCHW], preprocess="raw").digest,
    }
    draw(tmp_path / "b.png", noise(8, 12, 3, seed=2))
    others |= {open_dataset(tmp_path, [NCHW], preprocess="unit").digest}
    assert len(others | {first.digest}) == 5


# What is refused


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot identify image"), (b"not an image at all", "cannot identify image"), (None, "truncated|broken")],
)
def test_unreadable_images_are_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    draw(tmp_path / "a.png", noise(8, 12, 3))
    draw(tmp_path / "b.png", noise(80, 120, 3))
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:2000] if content is None else content)
    with pytest.raises(DataError, match=rf"cannot read the image .*b\.png: .*({reason}).*; repair or remove it"):
        only(tmp_path, NCHW)


def test_deep_and_huge_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.png", np.zeros((8, 12), np.uint16))
    with pytest.raises(DataError, match=r"its pixels are of mode I;16, not 8 bit"):
        only(tmp_path, NCHW)
    draw(tmp_path / "a.png", noise(8, 12, 3))
    for limit in (90, 40):  # Pillow warns above its limit, and raises above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match="decompression bomb"):
            only(tmp_path, NCHW)


@pytest.mark.parametrize(
    ("inputs", "preprocess", "message"),
    [
        ([spec("N", 4)], "raw", r"takes x: float32\[N,4\]: no single image input; give .npz feeds"),
        ([NCHW, spec("N", 2, name="z")], "raw", "no single image input"),
        ([NCHW], Preprocess(layout="nhwc"), "does not take images in layout nhwc"),
        ([spec("N", 1, 8, 12)], "imagenet", "takes 1 channels and the preprocessing makes 3; set channels"),
        ([spec("N", 3, 8, 12)], Preprocess(channels="gray"), "takes 3 channels and the preprocessing makes 1"),
        ([spec("N", 4, 8, 12)], "raw", "takes 4 channels and the preprocessing makes 1 or 3"),
        (
            [spec("N", 1, 8, 12)],
            Preprocess(mean=(1.0, 2.0, 3.0)),
            "mean and std have 3 values, .* has 1 channel; give 1 value",
        ),
        ([spec("N", 3, 8, 12, dtype=np.int8)], "raw", "is neither float nor uint8"),
    ],
)
def test_inputs_that_do_not_take_these_images(tmp_path: Path, inputs: Any, preprocess: Any, message: str) -> None:
    draw(tmp_path / "a.png", noise(8, 12, 3))
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path, inputs, preprocess=preprocess)


# TOML


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "prep.toml"
    path.write_text(
        'size = 256\ncrop = [224, 192]\nchannels = "bgr"\nscale = 1\nmean = [1, 2, 3.5]\nstd = 2\n'
        'layout = "nhwc"\nresample = "bicubic"\n'
    )
    assert parse(path) == Preprocess(
        size=256, crop=(224, 192), channels="bgr", mean=(1.0, 2.0, 3.5), std=(2.0,), layout="nhwc", resample="bicubic"
    )
    path.write_text("crop = 32\n")
    assert parse(str(path)).crop == (32, 32)
    draw(tmp_path / "images" / "a.png", noise(40, 40, 3))
    assert only(tmp_path / "images", spec("N", 3, "H", "W"), path).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sclae = 1", r"prep\.toml: unknown key 'sclae'; did you mean 'scale'"),
        ("zzz = 1", "unknown key 'zzz'; there is 'channels', 'crop'"),
        ("size = ", r"cannot read .*prep\.toml"),
        ("size = 0", "size and crop are whole numbers of pixels, at least 1"),
        ("size = 2.5", "size and crop are whole numbers"),
        ("size = true", "size and crop are whole numbers"),
        ("crop = [1, 2, 3]", "crop is a height and a width"),
        ('crop = "big"', "crop is a list, not 'big'"),
        ('channels = "rbg"', "channels = 'rbg' is none of rgb, bgr, gray"),
        ('layout = "chw"', "layout = 'chw' is none of nchw, nhwc"),
        ('resample = "cubic"', "resample = 'cubic' is none of nearest, bilinear"),
        ('scale = "1/255"', r"scale takes numbers, not \['1/255'\]"),
        ("scale = 0", "scale and std not 0"),
        ("scale = nan", "must be finite"),
        ("mean = []", "mean takes numbers"),
        ("mean = [1, 2]", "mean and std take 1 value or one for each of 3 channels"),
        ("std = [1, 0, 1]", "scale and std not 0"),
        ('channels = "gray"\nmean = [1, 2, 3]', "one for each of 1 channels"),
    ],
)
def test_toml_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prep.toml"
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        parse(path)


def test_presets_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"no preprocessing is named 'imagnet'; did you mean 'imagenet'.* \(or give a \.toml file\)"
    ):
        open_dataset(tmp_path, [NCHW], preprocess="imagnet")
    with pytest.raises(SpecError, match=r"cannot read .*none\.toml"):
        parse(tmp_path / "none.toml")
