"""Made-up pictures with the statistics of photographs.

Photographs have a power spectrum that falls with the square of the frequency (Field, "Relations between the
statistics of natural images and the response properties of cortical cells", 1987), channels that are strongly
correlated, and edges, because things hide each other (Lee, Mumford and Huang, "Occlusion models for natural images",
2001). White noise has none of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Window: TypeAlias = tuple[slice, slice]

# Red, green, blue from luminance, blue-yellow and red-green, each of unit variance: luminance carries most.
_COLOURS = np.array([[0.92, 0.30, 0.22], [0.95, 0.08, -0.22], [0.90, -0.42, 0.05]], np.float32)
_SHAPES = (8, 24)
_SHARPEST = 0.4


@dataclass(frozen=True)
class Scenery:
    """Pictures of one size: (height, width, channels) float32 in 0..1, mean about 0.45, deviation about 0.25."""

    height: int
    width: int
    channels: int

    def picture(self, rng: np.random.Generator) -> Floats:
        """One picture; the same generator state gives the same picture."""
        texture = self._texture(rng)
        canvas = texture.copy()
        for _ in range(rng.integers(*_SHAPES)):
            window, cover = self._shape(rng)
            canvas[window] += cover * (self._surface(texture, window, rng) - canvas[window])
        tone = rng.normal(-0.2, 0.4) + rng.uniform(0.8, 1.6) * canvas
        picture: Floats = 1 / (1 + np.exp(-tone))
        return picture

    def _texture(self, rng: np.random.Generator) -> Floats:
        """A field whose amplitude falls with the frequency, of zero mean, with correlated channels."""
        spectrum_shape = (self.height, self.width // 2 + 1)
        fields = max(self.channels, 3) if self.channels > 1 else 1
        waves = rng.standard_normal((2, fields, *spectrum_shape), np.float32)
        frequency = np.hypot(np.fft.fftfreq(self.height)[:, None], np.fft.rfftfreq(self.width)[None])
        frequency[0, 0] = np.inf
        # Colour changes more slowly across a picture than light does.
        fall = rng.uniform(0.9, 1.4) + np.array([0.0, 0.4, 0.4, 0.0], np.float32)[:fields, None, None]
        spectrum = (waves[0] + 1j * waves[1]) / frequency.astype(np.float32) ** fall
        field = np.fft.irfft2(spectrum, s=(self.height, self.width)).astype(np.float32)
        field /= field.std(axis=(1, 2), keepdims=True) + np.float32(1e-6)
        return self._coloured(np.moveaxis(field, 0, -1))

    def _coloured(self, fields: Floats) -> Floats:
        """(..., fields) independent -> (..., channels) correlated."""
        return np.ascontiguousarray(fields @ _COLOURS.T if self.channels == 3 else fields[..., : self.channels])

    def _shape(self, rng: np.random.Generator) -> tuple[Window, Floats]:
        """Part of the picture, and how much of each pixel of it is covered, (rows, columns, 1) in 0..1.

        Covered is an ellipse, or all on one side of a line, with an edge more or less soft.
        """
        side = min(self.height, self.width)
        centre_y, centre_x = rng.uniform(0, self.height), rng.uniform(0, self.width)
        turn = rng.uniform(0, 2 * np.pi)
        softness = _SHARPEST + rng.exponential(0.01 * side)
        # Sizes of things fall with the cube of the radius: few large ones, many small ones.
        radius, flat = side * 0.06 / np.sqrt(rng.uniform(0.02, 1)), rng.uniform(0.3, 1)
        line = rng.random() < 0.1
        reach = np.inf if line else radius + 6 * softness
        window = _around(centre_y, reach, self.height), _around(centre_x, reach, self.width)
        y, x = _grid(window)
        y, x = y - centre_y, x - centre_x
        u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        distance = u if line else radius - np.hypot(u, v / flat)
        cover: Floats = (1 / (1 + np.exp(-np.clip(distance / softness, -30, 30)))).astype(np.float32)
        return window, cover[..., None]

    def _surface(self, texture: Floats, window: Window, rng: np.random.Generator) -> Floats:
        """What a thing is covered with: a colour, light falling off across it, some texture, sometimes stripes."""
        y, x = _grid(window)
        turn, period = rng.uniform(0, 2 * np.pi), rng.uniform(4, 40)
        across = np.cos(turn) * x + np.sin(turn) * y
        light = rng.normal(0, 0.8) * across / max(self.height, self.width)
        stripes = max(0.0, rng.normal(0, 0.3)) * np.sin(across * (2 * np.pi / period))
        colour = self._coloured(rng.standard_normal(max(self.channels, 3) if self.channels > 1 else 1, np.float32))
        grain = rng.exponential(0.3) * texture[::-1, ::-1][window]
        surface: Floats = (colour + (light + stripes)[..., None] + grain).astype(np.float32)
        return surface


def _around(centre: float, reach: float, length: int) -> slice:
    return slice(int(max(centre - reach, 0)), int(min(centre + reach + 1, length)))


def _grid(window: Window) -> tuple[Floats, Floats]:
    """Row and column number of each pixel, as a column and a row that broadcast."""
    y, x = np.ogrid[window]
    return y.astype(np.float32), x.astype(np.float32)
