"""Budgets as text."""

from __future__ import annotations

import pytest

from onnxopt.pruning.budget import Budget, Quantity, parse


@pytest.mark.parametrize(
    ("quantity", "text", "now", "limit"),
    [
        ("macs", "-30%", 200.0, 140.0),
        ("params", " -12.5 % ", 8.0, 7.0),
        ("macs", "40M", 1.0, 40e6),
        ("params", "250k", 1.0, 250e3),
        ("size", "1.5MB", 1.0, 1.5e6),
        ("size", "2MiB", 1.0, 2 * 2**20),
        ("size", "60K", 1.0, 60e3),
        ("size", "1.5m", 1.0, 1.5e6),
        ("size", "2G", 1.0, 2e9),
        ("size", "700", 1.0, 700.0),
        ("latency", "3ms", 1.0, 3e-3),
        ("latency", "-25%", 4.0, 3.0),
    ],
)
def test_limits(quantity: Quantity, text: str, now: float, limit: float) -> None:
    assert parse(quantity, text).limit(now) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        ("macs", "30%"),
        ("macs", "-100%"),
        ("macs", "-30"),
        ("macs", "40MB"),
        ("latency", "3"),
        ("size", "0"),
        ("size", "many"),
        ("params", ""),
        ("params", "nan"),
    ],
)
def test_what_is_no_budget(quantity: Quantity, text: str) -> None:
    with pytest.raises(ValueError, match=f"{quantity} is '{text}'; write for example"):
        parse(quantity, text)


def test_a_budget_keeps_its_unit() -> None:
    assert parse("size", "1KB") == Budget("size", 1000.0, relative=False)
