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

# Red, green, blue from luminance, blue-yellow and red-green, each of unit variance: luminance carries most.
_COLOURS = np.array([[0.92, 0.30, 0.22], [0.95, 0.08, -0.22], [0.90, -0.42, 0.05]], np.float32)
_SHAPES = (4, 12)
_SHARPEST = 0.4


@dataclass(frozen=True)
class Scenery:
    """Pictures of one size: (height, width, channels) float32 in 0..1, mean about 0.45, deviation about 0.25."""

    height: int
    width: int
    channels: int

    def picture(self, rng: np.random.Generator) -> Floats:
        """One picture; the same generator state gives the same picture."""
        canvas = self._texture(rng)
        for _ in range(rng.integers(*_SHAPES)):
            canvas += self._shape(rng) * (self._surface(rng) - canvas)
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
        spectrum = (waves[0] + 1j * waves[1]) / frequency.astype(np.float32) ** np.float32(rng.uniform(0.9, 1.3))
        field = np.fft.irfft2(spectrum, s=(self.height, self.width)).astype(np.float32)
        field /= field.std(axis=(1, 2), keepdims=True) + np.float32(1e-6)
        return self._coloured(np.moveaxis(field, 0, -1))

    def _coloured(self, fields: Floats) -> Floats:
        """(..., fields) independent -> (..., channels) correlated."""
        return np.ascontiguousarray(fields @ _COLOURS.T if self.channels == 3 else fields[..., : self.channels])

    def _surface(self, rng: np.random.Generator) -> Floats:
        """What a thing is covered with: a colour, light falling off across it, sometimes stripes."""
        y, x = self._grid()
        turn, period = rng.uniform(0, 2 * np.pi), rng.uniform(4, 40)
        across = np.float32(np.cos(turn)) * x + np.float32(np.sin(turn)) * y
        light = rng.normal(0, 0.8) * across / max(self.height, self.width)
        stripes = max(0.0, rng.normal(0, 0.3)) * np.sin(across * np.float32(2 * np.pi / period))
        colour = self._coloured(rng.standard_normal(max(self.channels, 3) if self.channels > 1 else 1, np.float32))
        grain = rng.normal(0, 0.05, (self.height, self.width, 1))
        surface: Floats = (colour + (light + stripes)[..., None] + grain).astype(np.float32)
        return surface

    def _shape(self, rng: np.random.Generator) -> Floats:
        """(height, width, 1) in 0..1: an ellipse, or one side of a line, with an edge more or less soft."""
        y, x = self._grid()
        turn = rng.uniform(0, 2 * np.pi)
        y, x = y - rng.uniform(0, self.height), x - rng.uniform(0, self.width)
        u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        side = min(self.height, self.width)
        if rng.random() < 0.2:
            distance = u
        else:
            # Sizes of things fall with the cube of the radius (dead leaves): few large ones, many small ones.
            radius = side * 0.06 / np.sqrt(rng.uniform(0.02, 1))
            flat = rng.uniform(0.3, 1)
            distance = radius - np.hypot(u, v / flat)
        softness = _SHARPEST + rng.exponential(0.01 * side)
        mask: Floats = (1 / (1 + np.exp(-np.clip(distance / softness, -30, 30)))).astype(np.float32)
        return mask[..., None]

    def _grid(self) -> tuple[Floats, Floats]:
        y, x = np.meshgrid(np.arange(self.height), np.arange(self.width), indexing="ij")
        return y.astype(np.float32), x.astype(np.float32)
