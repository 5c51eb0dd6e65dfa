"""From pixels to what a model takes: resize, crop, channel order, ``(pixel * scale - mean) / std``, layout.

Presets, and the same as a TOML file:

    size = 256                      # short side after resizing
    crop = [224, 224]               # height and width cut from the centre
    channels = "rgb"                # rgb, bgr or gray
    scale = 0.00392156862745098     # multiplies 0..255
    mean = [0.485, 0.456, 0.406]    # in the order of the channels
    std = [0.229, 0.224, 0.225]
    layout = "nchw"                 # nchw or nhwc
    resample = "bilinear"           # nearest, bilinear, bicubic, lanczos or box
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from onnxopt.data.image_shape import Layout
from onnxopt.errors import SpecError
from onnxopt.spelling import nearest

Channels = Literal["rgb", "bgr", "gray"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes an input: each value is ``(pixel * scale - mean) / std`` with pixel in 0..255.

    ``size``: the short side is resized to this, in pixels, the other side keeps the proportion. ``crop``: (height,
    width) cut from the centre; alone, nothing is resized, unless the image is smaller. With neither, the image is
    resized until it just covers the input's height and width. What the graph fixes wins over ``crop``, and ``size``
    scales along; an image that has the right height and width already is taken as it is.
    ``channels`` and ``layout`` left at None are read from the input's shape. ``mean`` and ``std``: one value, or one
    a channel.

    Raises SpecError for a value that makes no sense.
    """

    size: int | None = None
    crop: tuple[int, int] | None = None
    channels: Channels | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout | None = None
    resample: Resample = "bilinear"

    def __post_init__(self) -> None:
        for name, allowed in (("channels", Channels), ("layout", Layout), ("resample", Resample)):
            value = getattr(self, name)
            if value not in get_args(allowed) and not (value is None and name != "resample"):
                raise SpecError(f"{name} = {value!r} is none of {', '.join(get_args(allowed))}")
        lengths = [v for v in (self.size, *(self.crop or ())) if v is not None]
        if any(not isinstance(v, int) or isinstance(v, bool) or v < 1 for v in lengths):
            raise SpecError("size and crop are whole numbers of pixels, at least 1")
        if self.crop is not None and len(self.crop) != 2:
            raise SpecError("crop is a height and a width, such as [224, 224]")
        if not all(map(math.isfinite, (self.scale, *self.mean, *self.std))) or self.scale == 0 or 0 in self.std:
            raise SpecError("scale, mean and std must be finite, scale and std not 0")
        wide = 1 if self.channels == "gray" else 3
        if any(len(values) not in (1, wide) for values in (self.mean, self.std)):
            raise SpecError(f"mean and std take 1 value or one for each of {wide} channels")


_IMAGENET = Preprocess(
    size=256, crop=(224, 224), channels="rgb", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
_SIGNED = Preprocess(size=256, crop=(224, 224), scale=1 / 127.5, mean=(1.0,))

PRESETS: Mapping[str, Preprocess] = MappingProxyType(
    {
        "imagenet": _IMAGENET,
        "imagenet-tf": _SIGNED,
        "mobilenet": _SIGNED,
        "caffe": Preprocess(size=256, crop=(224, 224), channels="bgr", mean=(104.0, 117.0, 123.0)),
        "clip": Preprocess(
            size=224,
            crop=(224, 224),
            channels="rgb",
            scale=1 / 255,
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
            resample="bicubic",
        ),
        "cifar10": Preprocess(
            channels="rgb", scale=1 / 255, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
        ),
        "centered": Preprocess(mean=(127.0,), std=(128.0,)),
        "unit": Preprocess(scale=1 / 255),
        "raw": Preprocess(),
        "raw-bgr": Preprocess(channels="bgr"),
    }
)
"""``imagenet``, ``cifar10``, ``clip``: RGB/255 less the mean of that data, over its deviation. ``imagenet-tf`` and
``mobilenet``: x/127.5 - 1. ``caffe``: BGR 0..255 less 104, 117, 123. ``centered``: (x - 127)/128. ``unit``: x/255.
``raw``, ``raw-bgr``: 0..255 as they are."""


def parse(text: str | Path) -> Preprocess:
    """The preset of that name, or what a TOML file says. Raises SpecError."""
    if str(text) in PRESETS:
        return PRESETS[str(text)]
    if Path(text).suffix.lower() != ".toml":
        raise SpecError(f"no preprocessing is named {str(text)!r}{nearest(str(text), PRESETS)} (or give a .toml file)")
    try:
        values = tomllib.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"cannot read {text}: {error}") from error
    try:
        return _from_table(values)
    except SpecError as error:
        raise SpecError(f"{text}: {error}") from error


def _from_table(values: Mapping[str, Any]) -> Preprocess:
    fields = {f.name for f in dataclasses.fields(Preprocess)}
    for key in values:
        if key not in fields:
            raise SpecError(f"unknown key {key!r}{nearest(key, fields)}")
    clean = dict(values)
    if isinstance(clean.get("crop"), int):
        clean["crop"] = (clean["crop"], clean["crop"])
    if "crop" in clean:
        clean["crop"] = _sequence("crop", clean["crop"])
    if "scale" in clean:
        clean["scale"] = _numbers("scale", [clean["scale"]])[0]
    for key in ("mean", "std"):
        if key in clean:
            clean[key] = _numbers(key, clean[key] if isinstance(clean[key], list) else [clean[key]])
    return Preprocess(**clean)


def _sequence(key: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SpecError(f"{key} is a list, not {value!r}")
    return tuple(value)


def _numbers(key: str, values: list[Any]) -> tuple[float, ...]:
    if not values or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise SpecError(f"{key} takes numbers, not {values!r}")
    return tuple(map(float, values))


def rescaled(preprocess: Preprocess, height: int, width: int) -> Preprocess:
    """The same preprocessing for another crop: ``size`` keeps its proportion to it."""
    if preprocess.crop is None or preprocess.crop == (height, width):
        return preprocess
    size = preprocess.size
    if size is not None:
        size = max(1, round(size * min(height / preprocess.crop[0], width / preprocess.crop[1])))
    return replace(preprocess, size=size, crop=(height, width))
