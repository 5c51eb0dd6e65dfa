"""Shares and sizes as people write them."""

from __future__ import annotations

import pytest

from onnxopt.check.limits import parse_share, parse_size
from onnxopt.errors import SpecError


@pytest.mark.parametrize(
    ("text", "value"),
    [("97%", 0.97), ("0.5%", 0.005), (" 1 % ", 0.01), ("0.97", 0.97), (".5", 0.5), ("0", 0), ("100%", 1)],
)
def test_shares(text: str, value: float) -> None:
    assert parse_share(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "'1' may mean 1% or 100%; write the %"),
        ("97", "'97' may mean 97% or 9700%"),
        ("101%", "'101%' is more than all"),
        ("-1%", "'-1%' is no share; write for example 97% or 0.97"),
        ("much", "'much' is no share"),
        ("1%%", "'1%%' is no share"),
        ("nan", "'nan' is no share"),
    ],
)
def test_what_is_no_share(text: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        parse_share(text)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.5MB", 1_500_000), ("800kB", 800_000), ("800 k", 800_000), ("64KiB", 65_536), ("2GB", 2 * 10**9), ("123", 123)],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["big", "-1", "1.5XB", "", "1i", "1 M B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(SpecError, match="is no size; write for example"):
        parse_size(text)


@pytest.mark.parametrize("text", ["9" * 400, "1e", "99999999TB"])
def test_sizes_that_no_file_has(text: str) -> None:
    with pytest.raises(SpecError, match=r"is more than any file holds|is no size"):
        parse_size(text)
