"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from onnxopt.report import words


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_098_700, "1.10 MB"),
        (93_485, "93.5 kB"),
        (2.5e9, "2.50 GB"),
        (999_600, "1.00 MB"),
    ],
)
def test_size(n: int, text: str) -> None:
    assert words.size(n) == text


@pytest.mark.parametrize(
    ("n", "text"), [(None, "?"), (12, "12"), (272_474, "272 k"), (40_813_184, "40.8 M"), (3e14, "300 T")]
)
def test_count(n: float | None, text: str) -> None:
    assert words.count(n) == text


def test_one_thing_is_one() -> None:
    assert [words.many(n, "layer") for n in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]


def test_shares_decibels_and_times() -> None:
    assert (words.share(0.9724), words.share(None)) == ("97.2 %", "-")
    assert [words.decibels(x) for x in (28.42, math.inf, -math.inf, math.nan)] == ["28.4 dB", "equal", "-inf dB", "?"]
    assert [words.milliseconds(x) for x in (0.01734, 12.345, 1234.5)] == ["0.0173 ms", "12.3 ms", "1234 ms"]
