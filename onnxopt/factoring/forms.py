"""What a layer can be made of: two matrices, two convolutions of a row and of a column, or three convolutions.

A form lists ranks with what they cost and what they are expected to lose, and finds the factors for some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import numpy as np

from onnxopt.factoring.site import Site
from onnxopt.graph.layer import Floats
from onnxopt.numerics import multilinear, variational
from onnxopt.numerics.low_rank import factorize, singular_values
from onnxopt.numerics.multilinear import input_spectrum

Kind = Literal["matrix", "tucker", "spatial", "cp"]
Conv = Literal["none", "tucker", "spatial", "cp"]
Ranks = tuple[int, ...]
# For canonical products nothing tells the error but to find them: so many ranks are tried, in few sweeps.
_CP_RANKS, _CP_SWEEPS = 5, 1


class Choice(NamedTuple):
    """Some ranks: parameters in order of the chain, and the share of the outputs' energy that is expected to go."""

    ranks: Ranks
    sizes: tuple[int, ...]
    loss: float

    @property
    def parameters(self) -> int:
        return sum(self.sizes)

    def macs(self, first: int, behind: int) -> int:
        """With so many positions of what the first of the chain makes, and of the output."""
        return self.sizes[0] * first + sum(self.sizes[1:]) * behind


@dataclass(frozen=True)
class Form:
    """One layer in one form; ``shape`` is (outputs, inputs, height, width)."""

    kind: Kind
    shape: tuple[int, int, int, int]

    @property
    def whole(self) -> int:
        return prod(self.shape)

    def sizes(self, ranks: Ranks) -> tuple[int, ...]:
        """Parameters of the factors, in the order in which they are applied."""
        o, c, h, w = self.shape
        if self.kind == "tucker":
            a, b = ranks
            return c * b, a * b * h * w, a * o
        (r,) = ranks
        if self.kind == "cp":
            return c * r, r * h * w, r * o
        return (c * h * r, r * o * w) if self.kind == "spatial" else (c * r, r * o)

    def clipped(self, ranks: Ranks) -> Ranks:
        """The same, but none above what the others leave to be of any use."""
        if self.kind != "tucker":
            return ranks
        o, c, h, w = self.shape
        a = min(ranks[0], o)
        b = min(ranks[1], c, a * h * w)
        return min(a, b * h * w), b

    def choices(self, weight: Floats, moment: Floats | None, step: int) -> list[Choice]:
        """All ranks that save parameters: multiples of ``step``, and of four below it. ``weight`` (outputs, rest)."""
        if self.kind == "tucker":
            return self._tucker(weight, moment, step)
        if self.kind == "cp":
            return self._cp(weight, moment, step)
        flat, small = self._flat(weight, moment)
        left = _tail(np.square(singular_values(flat, small)))
        most = min(len(left) - 1, (self.whole - 1) // sum(self.sizes((1,))))
        return [Choice((r,), self.sizes((r,)), float(left[r])) for r in counts(most, step)]

    def _flat(self, weight: Floats, moment: Floats | None) -> tuple[Floats, Floats | None]:
        """The matrix whose rank it is about."""
        if self.kind == "matrix":
            return weight, moment
        o, c, h, w = self.shape
        flat = weight.reshape(self.shape).transpose(0, 3, 1, 2).reshape(o * w, c * h)
        return flat, None if moment is None else multilinear.summed(moment, (c, h, w), 2)

    def _tucker(self, weight: Floats, moment: Floats | None, step: int) -> list[Choice]:
        o, c = self.shape[:2]
        outer = _tail(np.square(singular_values(weight, moment)), o)
        inner = _tail(input_spectrum(weight.reshape(self.shape), moment), c)
        found = []
        for a in counts(o, step):
            for b in counts(c, step):
                sizes = self.sizes((a, b))
                if sum(sizes) < self.whole and self.clipped((a, b)) == (a, b):
                    found.append(Choice((a, b), sizes, float(min(1.0, outer[a] + inner[b]))))
        return found

    def _cp(self, weight: Floats, moment: Floats | None, step: int) -> list[Choice]:
        full, found = weight.reshape(self.shape), []
        all_ranks = counts((self.whole - 1) // sum(self.sizes((1,))), step)
        power = multilinear.error(full, np.zeros_like(full), moment)
        picked = {round(i) for i in np.linspace(0, len(all_ranks) - 1, _CP_RANKS)} if all_ranks else set()
        for r in (all_ranks[i] for i in sorted(picked)):
            factors = multilinear.cp(full, r, moment, _CP_SWEEPS)
            lost = multilinear.error(full, multilinear.compose(multilinear.CP, factors), moment)
            found.append(Choice((r,), self.sizes((r,)), lost / power if power else 0.0))
        return found

    def estimate(self, weight: Floats) -> Ranks:
        """By variational Bayes, of the weights; at least 1. ValueError for canonical products."""
        if self.kind == "tucker":
            o, c = self.shape[:2]
            inner = weight.reshape(o, c, -1).transpose(1, 0, 2).reshape(c, -1)
            return _estimated(weight), _estimated(inner)
        if self.kind == "cp":
            raise ValueError("the rank of canonical products cannot be estimated")
        return (_estimated(self._flat(weight, None)[0]),)

    def fit(self, weight: Floats, ranks: Ranks, moment: Floats | None) -> list[Floats]:
        """Factors, the one that makes the output first."""
        full = weight.reshape(self.shape)
        if self.kind == "tucker":
            return multilinear.tucker(full, (ranks[0], ranks[1]), moment)
        if self.kind == "spatial":
            return multilinear.spatial(full, ranks[0], moment)
        if self.kind == "cp":
            return multilinear.cp(full, ranks[0], moment)
        return list(factorize(weight, ranks[0], moment))

    def compose(self, factors: Sequence[Floats]) -> Floats:
        """The weight that factors stand for, as (outputs, rest)."""
        if self.kind == "matrix":
            return np.asarray(factors[0] @ factors[1])
        equation = {"tucker": multilinear.TUCKER, "spatial": multilinear.SPATIAL, "cp": multilinear.CP}[self.kind]
        return multilinear.compose(equation, factors).reshape(self.shape[0], -1)

    def any_factors(self, ranks: Ranks) -> list[Floats]:
        """Of the right shapes, to be timed."""
        rng, (o, c, h, w) = np.random.default_rng(0), self.shape
        shapes: dict[Kind, list[tuple[int, ...]]] = {
            "matrix": [(o, ranks[0]), (ranks[0], c * h * w)],
            "spatial": [(o, ranks[0], w), (ranks[0], c, h)],
            "cp": [(o, ranks[0]), (ranks[0], h, w), (ranks[0], c)],
            "tucker": [(o, ranks[0]), (*ranks, h, w), (ranks[-1], c)],
        }
        return [rng.standard_normal(s) / np.sqrt(prod(s[1:])) for s in shapes[self.kind]]


def form(site: Site, conv: Conv) -> Form | str:
    """The form of a layer, or why it has none."""
    o, c, h, w = site.unfolded
    if h * w == 1:
        return Form("matrix", (o, c, 1, 1))
    if conv == "none":
        return "it is a convolution of more than one position, and conv=none"
    if conv == "spatial" and (len(site.kernel) != 2 or h == 1 or w == 1):
        return "its kernel has no two sides to part"
    return Form(conv, (o, c, h, w))


def counts(most: int, step: int) -> list[int]:
    """Ranks that suit the target, up to ``most``: multiples of ``step``, and of four up to half of it."""
    return [*range(4, min(step // 2, most) + 1, 4), *range(step, most + 1, step)] or list(range(1, most + 1))


def rounded_up(rank: int, step: int) -> int:
    """The next rank that suits the target."""
    return next(r for r in counts(max(rank + step, step), step) if r >= rank)


def _tail(energy: Floats, size: int | None = None) -> Floats:
    """The share that is lost by each rank from 0 on; past the last, nothing."""
    left = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
    left = np.maximum(left, 0.0) / (float(left[0]) or 1.0)
    return left if size is None else np.pad(left, (0, max(0, size + 1 - len(left))))


def _estimated(matrix: Floats) -> int:
    return max(1, variational.rank(singular_values(matrix), *matrix.shape))
