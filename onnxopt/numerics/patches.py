"""The rows that a convolution multiplies with its weights (im2col), at all or at some of the output's positions.

``Conv(x)[n, :, p] = weight.reshape(out_channels, -1) @ patch(n, p) + bias`` for one group. With groups, the rows
reshaped to (n, groups, -1) meet the weights reshaped to (groups, out_channels / groups, -1). Any number of spatial
dimensions; pads as ONNX writes them, all the begins and then all the ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", bound=np.generic)
Positions = npt.NDArray[np.intp]


def output_size(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> tuple[int, ...]:
    """The output's spatial shape for an input's spatial shape ``size``."""
    begins, ends = pads[: len(size)], pads[len(size) :]
    return tuple(
        max(0, (n + b + e - d * (k - 1) - 1) // s + 1)
        for n, k, s, b, e, d in zip(size, kernel, strides, begins, ends, dilations, strict=True)
    )


def same_pads(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], *, upper: bool
) -> tuple[int, ...]:
    """The pads that ``auto_pad`` SAME_UPPER (or SAME_LOWER) stands for: output = ceil(input / stride)."""
    totals = [
        max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return tuple(small + large if upper else large + small)


def sample_positions(total: int, count: int, rng: np.random.Generator) -> Positions:
    """At most ``count`` of ``total`` positions, without repetition, in rising order."""
    if total <= count:
        return np.arange(total)
    return np.sort(rng.choice(total, count, replace=False, shuffle=False))


def patches(
    x: npt.NDArray[T],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    positions: Positions | None = None,
) -> npt.NDArray[T]:
    """Input patches as rows: (len(positions), channels * prod(kernel)), channel first, as in Conv's weight.

    ``x`` is (batch, channels, *spatial). ``positions`` index the flattened (batch, *output spatial) grid; None: all.
    """
    rank = x.ndim - 2
    size = output_size(x.shape[2:], kernel, strides, pads, dilations)
    widths = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(x, widths) if any(pads) else x
    span = padded.strides[2:]
    windows = np.lib.stride_tricks.as_strided(
        padded,
        (len(x), *size, x.shape[1], *kernel),
        (
            padded.strides[0],
            *(a * s for a, s in zip(span, strides, strict=True)),
            padded.strides[1],
            *(a * d for a, d in zip(span, dilations, strict=True)),
        ),
        writeable=False,
    )
    grid = (len(x), *size)
    index = np.unravel_index(np.arange(np.prod(grid)) if positions is None else positions, grid)
    return windows[index].reshape(len(index[0]), x.shape[1] * int(np.prod(kernel)))


def rows_at(y: npt.NDArray[Any], positions: Positions | None = None) -> npt.NDArray[Any]:
    """The channel vectors of ``y`` (batch, channels, *spatial) at ``positions``: (len(positions), channels)."""
    channels_last = np.moveaxis(y, 1, -1)
    grid = channels_last.shape[:-1]
    index = np.unravel_index(np.arange(np.prod(grid)) if positions is None else positions, grid)
    return np.asarray(channels_last[index])
