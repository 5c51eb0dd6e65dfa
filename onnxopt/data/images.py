"""Images as samples: found in a folder, decoded when they are wanted, labelled by their names, fitted to an input."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxopt.data.image_shape import ImageShape
from onnxopt.data.part import IntArray, Part
from onnxopt.data.preprocess import PRESETS, Preprocess, parse, rescaled
from onnxopt.errors import DataError
from onnxopt.graph.signature import Array, Dim, TensorSpec

__all__ = [
    "PRESETS",
    "SUFFIXES",
    "Fitted",
    "Preprocess",
    "as_pixels",
    "file_labels",
    "find",
    "fit",
    "folder_part",
    "parse",
]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_DEFAULT_SIDE = 224
_LABELLED = re.compile(r"^(\d{1,9})_")

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Fitted:
    """A preprocessing made definite for one input: ``height`` and ``width`` in pixels, ``channels`` 1 or 3."""

    spec: TensorSpec
    preprocess: Preprocess
    image: ImageShape
    height: int
    width: int
    channels: int
    feeds: bool

    @property
    def item(self) -> tuple[int, ...]:
        """The shape of one sample: an image, or a whole feed of one image where ``feeds``."""
        item = self.image.item(self.channels, self.height, self.width)
        return (1, *item) if self.feeds and self.image.batched else item

    def decode(self, path: Path) -> Pixels:
        """(height, width, channels), resized and cropped. Raises DataError for an unreadable image."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as picture:
                    if picture.mode.startswith(("I", "F")):
                        raise ValueError(f"its pixels are of mode {picture.mode}, not 8 bit")
                    return self._cut(picture)
        except (
            OSError,
            ValueError,
            SyntaxError,
            EOFError,
            MemoryError,
            Image.DecompressionBombError,
            Warning,
        ) as error:
            raise DataError(
                f"cannot read the image {path}: {' '.join(str(error).split())}; repair or remove it"
            ) from error

    def resize(self, pixels: Pixels) -> Pixels:
        """(n, any height, any width, 1, 3 or 4 channels) -> (n, height, width, channels)."""
        if pixels.shape[1:] == (self.height, self.width, self.channels):
            return pixels
        flat = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        return np.stack([self._cut(Image.fromarray(np.ascontiguousarray(p))) for p in flat])

    def normalise(self, pixels: Pixels) -> Array:
        """(n, height, width, channels) 0..255 -> (n, \\*item) of the input's type: ``(pixel * scale - mean) / std``."""
        p = self.preprocess
        if p.channels == "bgr":
            pixels = pixels[..., ::-1]
        values: Array = pixels
        if self.spec.dtype != np.uint8:
            values = pixels.astype(np.float32)
            values *= np.float32(p.scale)
            values -= np.asarray(p.mean, np.float32)
            values /= np.asarray(p.std, np.float32)
            values = values.astype(self.spec.dtype, copy=False)
        values = values.transpose(0, 3, 1, 2) if self.image.layout == "nchw" else values
        return np.ascontiguousarray(values).reshape(-1, *self.item)

    def _cut(self, picture: Image.Image) -> Pixels:
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        width, height = picture.size
        if (height, width) != (self.height, self.width):
            scale = self._scale(height, width)
            new_width, new_height = max(self.width, round(width * scale)), max(self.height, round(height * scale))
            if (new_width, new_height) != (width, height):
                picture = picture.resize((new_width, new_height), Image.Resampling[self.preprocess.resample.upper()])
            left, top = round((new_width - self.width) / 2), round((new_height - self.height) / 2)
            picture = picture.crop((left, top, left + self.width, top + self.height))
        return np.array(picture, np.uint8).reshape(self.height, self.width, self.channels)

    def _scale(self, height: int, width: int) -> float:
        cover = max(self.height / height, self.width / width)
        if self.preprocess.size is not None:
            return max(cover, self.preprocess.size / min(height, width))
        return cover if self.preprocess.crop is None else max(cover, 1.0)


def fit(preprocess: Preprocess, spec: TensorSpec, feeds: bool = False) -> tuple[Fitted, tuple[str, ...]]:
    """Make a preprocessing definite for an input; the second value is what the report must say.

    ``feeds``: each sample is a whole feed.

    Raises DataError when the input is no image, or has other channels or another type than the preprocessing makes.
    """
    image = ImageShape.of(spec, preprocess.layout)
    if image is None:
        layout = f" in layout {preprocess.layout}" if preprocess.layout else ""
        raise DataError(
            f"the input {spec} does not take images{layout}; leave the preprocessing out, or give .npz feeds"
        )
    wanted = {None: None, "gray": 1}.get(preprocess.channels, 3)
    channels = image.channels if isinstance(image.channels, int) else wanted or 3
    if channels not in (1, 3) or wanted not in (None, channels):
        raise DataError(
            f"the input {spec} takes {channels} channels and the preprocessing makes {wanted or '1 or 3'}; "
            "set channels (rgb, bgr or gray), or prepare the data yourself as .npz"
        )
    if max(len(preprocess.mean), len(preprocess.std)) > channels:
        raise DataError(f"mean and std have 3 values, the input {spec} has {channels} channel; give 1 value")
    if spec.dtype == np.uint8 and (preprocess.scale, {*preprocess.mean}, {*preprocess.std}) != (1, {0.0}, {1.0}):
        raise DataError(f"the input {spec} takes pixels as they are; use the preprocessing 'raw'")
    if spec.dtype != np.uint8 and not _is_float(spec.dtype):
        raise DataError(f"the input {spec} is neither float nor uint8: images cannot be made for it; give .npz feeds")
    crop = preprocess.crop or (None, None)
    height = _side(image.height, crop[0], preprocess.size)
    width = _side(image.width, crop[1], preprocess.size)
    notes = () if preprocess.crop in (None, (height, width)) else (_rescaling(preprocess.crop, height, width),)
    return Fitted(spec, rescaled(preprocess, height, width), image, height, width, channels, feeds), notes


def _side(dim: Dim, crop: int | None, size: int | None) -> int:
    return dim if isinstance(dim, int) else crop or size or _DEFAULT_SIDE


def _rescaling(crop: tuple[int, int], height: int, width: int) -> str:
    return f"the graph fixes images of {height}x{width}: the crop of {crop[0]}x{crop[1]} became that, size scales along"


def _is_float(dtype: np.dtype[np.generic]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def as_pixels(array: Array) -> Pixels | None:
    """A uint8 array of one or more images as (n, height, width, channels); None when it is not that.

    Takes (n,H,W,C), (n,C,H,W), (H,W,C), (C,H,W), (n,H,W) and (H,W) with C of 1, 3 or 4.
    """
    if array.dtype != np.uint8 or not 2 <= array.ndim <= 4:
        return None
    if array.ndim == 4:
        if array.shape[3] in (1, 3, 4):
            return array
        return array.transpose(0, 2, 3, 1) if array.shape[1] in (1, 3, 4) else None
    if array.ndim == 2:
        return array[None, :, :, None]
    if array.shape[2] in (1, 3, 4):
        return array[None]
    return array.transpose(1, 2, 0)[None] if array.shape[0] in (1, 3) else array[..., None]


def find(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Files with one of the endings, in the folder and below, by path; hidden ones and linked folders left out."""
    found = [
        Path(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in suffixes
    ]
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def folder_part(folder: Path, paths: Sequence[Path], fitted: Fitted) -> tuple[Part, tuple[str, ...]]:
    """All images as one part, and what the report must say about their labels."""
    labels, notes = file_labels(folder, paths)

    def read(rows: IntArray) -> dict[str, Array]:
        return {fitted.spec.name: fitted.normalise(np.stack([fitted.decode(paths[r]) for r in rows]))}

    def content(rows: IntArray) -> Iterator[bytes]:
        yield repr(fitted).encode()
        for r in rows:
            yield paths[r].read_bytes()

    return Part(str(folder), len(paths), fitted.item, read, labels, content), notes


def file_labels(folder: Path, paths: Sequence[Path]) -> tuple[IntArray | None, tuple[str, ...]]:
    """Labels (len(paths),) from the folder that each file is in, or from names such as ``0042_anything.jpg``.

    Folders need no numbers for names: sorted, they count from 0. None when there are no labels.
    """
    parents = [p.relative_to(folder).parts[:-1] for p in paths]
    names = sorted({parts[0] for parts in parents if parts})
    numbered = all(n.isdecimal() for n in names)
    if names and all(parents) and (numbered or len(names) > 1):
        values = {name: int(name) if numbered else i for i, name in enumerate(names)}
        note = (
            "labels are the numbers that name the folders" if numbered else "labels count the folders, sorted by name"
        )
        return np.array([values[p[0]] for p in parents], np.int64), (note,)
    matches = [_LABELLED.match(p.name) for p in paths]
    if not all(matches):
        return None, ()
    labels = np.array([int(m[1]) for m in matches if m], np.int64)
    return labels, ("labels are the numbers in the file names",)
