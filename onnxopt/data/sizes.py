"""A size for every dimension that the graph leaves free, the same for the same name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from onnxopt.data.batching import is_batch_name, runs_along, terms
from onnxopt.data.casting import kind
from onnxopt.data.image_shape import ImageShape
from onnxopt.graph.signature import Dim, TensorSpec

_SIDE = 224
_SEQUENCE = 64
_SOUND = 16384
_PAST = re.compile(r"past|cache", re.IGNORECASE)


def concrete(
    inputs: Sequence[TensorSpec], sides: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Input name -> shape. Batch 1, image sides 224 (or ``sides`` of that input), sound 16384, other sequences 64.

    What is past has size 0. A name such as ``past_length + sequence_length`` is the sum that it says.
    """
    known: dict[str, int] = {}
    shapes = {}
    for spec in inputs:
        shape = (None,) if spec.shape is None else spec.shape
        guesses = _guesses(spec, (sides or {}).get(spec.name, (_SIDE, _SIDE)))
        shapes[spec.name] = tuple(_size(d, g, known) for d, g in zip(shape, guesses, strict=True))
    return shapes


def _size(dim: Dim, guess: int, known: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim is None:
        return guess
    if dim not in known:
        several = terms(dim)
        if len(several) > 1:
            known[dim] = sum(int(t) if t.isdecimal() else _size(t, _by_name(t, guess), known) for t in several)
        else:
            known[dim] = _by_name(dim, guess)
    return known[dim]


def _by_name(name: str, guess: int) -> int:
    if is_batch_name(name):
        return 1
    return 0 if _PAST.search(name) else guess


def _guesses(spec: TensorSpec, sides: tuple[int, int]) -> tuple[int, ...]:
    """What each axis would be, going by its place alone."""
    shape = spec.shape
    if shape is None:
        return (1,)
    image = ImageShape.of(spec)
    if image is not None:
        item = image.item(image.channels if isinstance(image.channels, int) else 3, *sides)
        return (1, *item) if image.batched else item
    sound = (
        kind(spec.dtype) == "float"
        and len(shape) in (2, 3)
        and sum(not _is_one(d, i) for i, d in enumerate(shape)) == 1
    )
    return tuple(1 if i == 0 and not runs_along(d) else _SOUND if sound else _SEQUENCE for i, d in enumerate(shape))


def _is_one(dim: Dim, axis: int) -> bool:
    """True for an axis that holds one thing: 1, or the first axis when it may be a batch."""
    return dim == 1 or (axis == 0 and not isinstance(dim, int) and not runs_along(dim))
