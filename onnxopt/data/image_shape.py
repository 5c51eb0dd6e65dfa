"""Is this input an image, and where are its channels, height and width?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from onnxopt.graph.signature import Dim, TensorSpec

Layout: TypeAlias = Literal["nchw", "nhwc"]
# Attention caches, masks and states may have the shape of an image, and are none.
_NO_IMAGE = re.compile(r"past|cache|state|hidden|mask|(^|[._])(key|value)($|[._])", re.IGNORECASE)
_SIDE = re.compile(r"height|width|^[hw]$", re.IGNORECASE)
_SMALLEST = 8
_CHANNELS = (3, 1, 4)


@dataclass(frozen=True)
class ImageShape:
    """Channels, height and width of an image input; ``batched`` is False for a lone ``[3,H,W]``."""

    layout: Layout
    batched: bool
    channels: Dim
    height: Dim
    width: Dim

    @classmethod
    def of(cls, spec: TensorSpec, layout: Layout | None = None) -> ImageShape | None:
        """The reading of the input as an image, or None when it does not look like one.

        Images have rank 4 with 1, 3 or 4 channels (or a free number), or rank 3 with 3 channels first or last, and at
        least 8 pixels a side. ``layout`` settles what the shape leaves open.
        """
        shape = spec.shape
        if shape is None or len(shape) not in (3, 4) or _NO_IMAGE.search(spec.name):
            return None
        readings = [_read(shape, side) for side in (("nchw", "nhwc") if layout is None else (layout,))]
        fit = [r for r in readings if r is not None]
        return min(fit, key=lambda r: _doubt(r.channels), default=None)

    def item(self, channels: int, height: int, width: int) -> tuple[int, ...]:
        """The shape of one image, without the batch axis."""
        return (channels, height, width) if self.layout == "nchw" else (height, width, channels)


def _doubt(channels: Dim) -> int:
    """Orders readings of one shape: the better the count of channels, the lower."""
    if isinstance(channels, int):
        return _CHANNELS.index(channels)
    return len(_CHANNELS) + bool(channels is not None and _SIDE.search(channels))


def _read(shape: tuple[Dim, ...], layout: Literal["nchw", "nhwc"]) -> ImageShape | None:
    batched = len(shape) == 4
    inner = shape[1:] if batched else shape
    channels, height, width = inner if layout == "nchw" else (inner[2], inner[0], inner[1])
    if any(isinstance(d, int) and d < _SMALLEST for d in (height, width)):
        return None
    if batched:
        return (
            ImageShape(layout, True, channels, height, width)
            if channels in _CHANNELS or not isinstance(channels, int)
            else None
        )
    # Rank 3 is mostly (batch, time, features): an image only with colour first, or both sides fixed.
    sides = (height, width)
    if channels == 3 and (layout == "nchw" or all(isinstance(d, int) for d in sides)):
        return ImageShape(layout, False, channels, height, width)
    return None
