"""Made-up feeds for when there is no data: pictures, text, sound and states that look like what a model is used to.

Nothing here is white noise: noise has no edges, no frequent words, no slow movement: ranges taken from it are wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from scipy.signal import lfilter

from onnxopt.data import images
from onnxopt.data.arrays import Signature
from onnxopt.data.casting import kind
from onnxopt.data.image_shape import ImageShape
from onnxopt.data.part import IntArray, Part
from onnxopt.data.scenery import Scenery
from onnxopt.data.sizes import concrete
from onnxopt.errors import DataError
from onnxopt.graph.signature import Array, Feed, TensorSpec, describe

Shape: TypeAlias = tuple[int, ...]
Maker: TypeAlias = Callable[[np.random.Generator], Array]

_SMALL_VOCABULARY = 100
_SHORTEST_SOUND = 4096
# Made samples are kept up to this, because data is gone through several times.
_KEPT_BYTES = 2**28
_LETTERS = np.frombuffer(b" etaoinshrdlucmfwypvbgkjqxz.,\n", np.uint8)
_MEAN, _DEVIATION = 0.45, 0.25


@dataclass(frozen=True)
class _Around:
    """What one input may want to know of the others: the picture's (height, width), and the length of a sequence."""

    sides: Shape
    length: int


def part(signature: Signature, count: int, seed: int, bounds: Mapping[str, int]) -> tuple[Part, tuple[str, ...]]:
    """``count`` samples, each made when it is read, from (seed, its number): the same whatever is read with it.

    ``bounds``: for an integer input, how many different values it may take (the size of the embedding that it indexes);
    100 where nothing is said; names that are no inputs are left aside. The second value is what the report must say.
    Raises DataError for a bound under 1, and for preprocessing without an image.
    """
    inputs, whole = signature.inputs, signature.batching.whole
    if any(bound < 1 for bound in bounds.values()):
        raise DataError(f"bounds must be at least 1, not {dict(bounds)}")
    fitted, notes = _fitted(signature)
    shapes = concrete(inputs, {n: (f.height, f.width) for n, f in fitted.items()})
    around = _around(inputs, shapes)
    makers = {
        s.name: _preprocessed(fitted[s.name])
        if s.name in fitted
        else _maker(s, shapes[s.name] if whole else shapes[s.name][1:], around, bounds.get(s.name))
        for s in inputs
    }

    def one(row: int) -> Feed:
        made = [np.asarray(makers[s.name](np.random.default_rng([seed, i, row]))) for i, s in enumerate(inputs)]
        return {s.name: value.astype(s.dtype, copy=False) for s, value in zip(inputs, made, strict=True)}

    size = sum(math.prod(shape) * s.dtype.itemsize for s, shape in zip(inputs, shapes.values(), strict=True))
    kept = lru_cache(maxsize=_KEPT_BYTES // max(size, 1))(one)
    once = set() if whole else {s.name for s in inputs if s.shape == ()}

    def read(rows: IntArray) -> Feed:
        made = [kept(int(row)) for row in rows]
        return {s.name: made[0][s.name] if s.name in once else np.stack([f[s.name] for f in made]) for s in inputs}

    what = sorted({_what(s) for s in inputs})
    said = f"SYNTHETIC DATA (seed {seed}): made-up {', '.join(what)}; figures on real data will differ, give some"
    if not fitted and any(ImageShape.of(s) is not None and kind(s.dtype) == "float" for s in inputs):
        said += "; images have about mean 0 and deviation 1: say the model's preprocessing if it takes another range"
    return Part(" and ".join(what), count, None, read), (said, *notes)


def _fitted(signature: Signature) -> tuple[dict[str, images.Fitted], tuple[str, ...]]:
    """The preprocessing made definite for each input that is an image."""
    preprocess = signature.preprocess
    if preprocess is None:
        return {}, ()
    found = {
        s.name: images.fit(preprocess, s, signature.batching.whole)
        for s in signature.inputs
        if ImageShape.of(s, preprocess.layout) is not None
    }
    if not found:
        raise DataError(f"no input looks like images to preprocess; the model takes {describe(signature.inputs)}")
    return {n: f for n, (f, _) in found.items()}, tuple(note for _, notes in found.values() for note in notes)


def _around(inputs: tuple[TensorSpec, ...], shapes: Mapping[str, Shape]) -> _Around:
    """A sequence runs along the longest free axis, or along the second axis where only the batch is free."""
    pictures = [(image, shapes[s.name]) for s in inputs if (image := ImageShape.of(s)) is not None]
    sides = [shape[-2:] if image.layout == "nchw" else shape[-3:-1] for image, shape in pictures]
    sizes = [(d, n) for s in inputs for d, n in zip(s.shape or (), shapes[s.name], strict=False)]
    free = max((n for d, n in sizes if not isinstance(d, int)), default=1)
    second = max((shape[1] for shape in shapes.values() if len(shape) > 1), default=1)
    return _Around(sides[0] if sides else (1, 1), free if free > 1 else second)


def _what(spec: TensorSpec) -> str:
    if ImageShape.of(spec) is not None:
        return "natural-looking images"
    return {"integer": "tokens", "float": "smooth signals"}.get(kind(spec.dtype), f"{kind(spec.dtype)} values")


def _maker(spec: TensorSpec, shape: Shape, around: _Around, bound: int | None) -> Maker:
    """How one sample of one input is made: by its name where that tells, else by its type and shape."""
    image = ImageShape.of(spec)
    of_kind = kind(spec.dtype)
    if of_kind == "text":
        return lambda rng: np.full(shape, "some words", object)
    if image is not None and bound is None and of_kind in ("float", "integer"):
        return _pictures(image, shape, spec.dtype)
    named = _by_name(spec.name.lower(), shape, around, of_kind)
    if named is not None:
        value = named if bound is None else np.minimum(named, bound - 1)
        return lambda rng: value
    if of_kind == "bool":
        flag = int(np.prod(shape)) <= 1
        return lambda rng: np.zeros(shape, bool) if flag else rng.random(shape) < 0.5
    if of_kind == "integer":
        text = spec.dtype == np.uint8 and (bound is None or bound > _LETTERS.max())
        return _letters(shape) if text else _tokens(shape, bound or _SMALL_VOCABULARY)
    if int(np.prod(shape)) <= 1:
        return lambda rng: np.ones(shape, np.float32)
    if _STATE.search(spec.name):
        return lambda rng: np.float32(0.3) * _smooth(rng, shape)
    if max(shape) >= _SHORTEST_SOUND and max(shape) == np.prod(shape):
        return _sound(shape)
    return lambda rng: _smooth(rng, shape)


_STATE = re.compile(r"state|hidden|cache|past|(^|_)[hc]_?\d*($|_)", re.IGNORECASE)


def _by_name(name: str, shape: Shape, around: _Around, of_kind: str) -> Array | None:
    """The value that an input of such a name always has; None when the name does not tell."""
    pair = shape[-1:] == (2,)
    single = int(np.prod(shape)) <= 1
    integer = of_kind == "integer"
    if "mask" in name:
        return np.ones(shape)
    if integer and re.search(r"token_type|segment", name):
        return np.zeros(shape)
    if integer and "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape)
    if pair and re.search(r"shape|size", name):
        return np.broadcast_to(np.array(around.sides), shape)
    if pair and "scale" in name:
        return np.ones(shape)
    if integer and single and re.search(r"len", name):
        return np.full(shape, around.length)
    if integer and single and re.search(r"(^|_)sr($|_)|sampl.*rate", name):
        return np.full(shape, 16000)
    if of_kind == "float" and single and re.search(r"thresh|iou|score|conf", name):
        return np.full(shape, 0.5)
    return None


def _preprocessed(fitted: images.Fitted) -> Maker:
    scenery = Scenery(fitted.height, fitted.width, fitted.channels)
    return lambda rng: fitted.normalise(_quantized(scenery.picture(rng))[None])[0]


def _pictures(image: ImageShape, shape: Shape, dtype: np.dtype[np.generic]) -> Maker:
    """Floats of about zero mean and unit variance, or pixels: 0..255, signed types -128..127."""
    item = shape[-3:]
    channels, height, width = item if image.layout == "nchw" else (item[2], item[0], item[1])
    scenery = Scenery(height, width, channels)

    def make(rng: np.random.Generator) -> Array:
        picture = scenery.picture(rng)
        values: Array = (picture - _MEAN) / _DEVIATION
        if dtype.kind in "iu":
            values = _quantized(picture).astype(np.int64) - (128 if dtype == np.int8 else 0)
        return (values.transpose(2, 0, 1) if image.layout == "nchw" else values).reshape(shape)

    return make


def _quantized(picture: Array) -> images.Pixels:
    return np.asarray(np.rint(picture * 255), np.uint8)


def _tokens(shape: Shape, bound: int) -> Maker:
    """Token numbers in 1..bound-1 (0 is mostly padding), the frequency falling with the rank (Zipf, 1935)."""
    numbers = np.arange(min(1, bound - 1), bound)
    share = 1 / (np.arange(numbers.size) + 2.7)
    edges = np.cumsum(share) / share.sum()
    return lambda rng: numbers[np.minimum(np.searchsorted(edges, rng.random(shape)), numbers.size - 1)]


def _letters(shape: Shape) -> Maker:
    """Letters and spaces as bytes, frequent ones frequent."""
    share = 1 / (np.arange(_LETTERS.size) + 2.7)
    return lambda rng: rng.choice(_LETTERS, shape, p=share / share.sum())


def _smooth(rng: np.random.Generator, shape: Shape) -> Array:
    """Noise that moves slowly along the longest axis: zero mean, unit variance, x[t] = 0.9 x[t-1] + noise."""
    axis = int(np.argmax(shape)) if shape else 0
    noise = rng.standard_normal(shape)
    if 0 in shape or not shape:
        return noise
    start = np.take(noise, [0], axis=axis) * (0.9 / np.sqrt(1 - 0.81))
    values, _ = lfilter([1.0], [1.0, -0.9], noise, axis=axis, zi=start)
    return np.asarray(values * np.sqrt(1 - 0.81), np.float32)


def _sound(shape: Shape) -> Maker:
    """A voice-like wave within -1..1: a few harmonics that come and go over a low murmur."""
    length = max(shape)

    def make(rng: np.random.Generator) -> Array:
        time = np.arange(length) / 16000
        loudness = np.interp(np.arange(length), np.linspace(0, length, 17), rng.random(17) ** 2)
        pitch = rng.uniform(90, 300)
        harmonics = np.arange(1, 9)
        phases = rng.uniform(0, 2 * np.pi, (8, 1))
        voice = (np.sin(2 * np.pi * pitch * harmonics[:, None] * time + phases) / harmonics[:, None]).sum(axis=0)
        wave = 0.15 * loudness * voice + 0.01 * _smooth(rng, (length,))
        return np.asarray(wave.reshape(shape), np.float32)

    return make
