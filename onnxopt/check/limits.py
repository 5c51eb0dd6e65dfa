"""Limits as people write them: ``97%``, ``0.5%``, ``1.5MB``."""

from __future__ import annotations

import re

from onnxopt.errors import SpecError

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_SIZE = re.compile(_NUMBER + r"\s*([kmgt]?)(i?)(b?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_share(text: str) -> float:
    """``"97%"`` or ``"0.97"`` -> 0.97, from 0 to 1. Raises SpecError; also for a bare 1, which may mean 1 %."""
    number, percent = text.strip().removesuffix("%").strip(), text.strip().endswith("%")
    if not re.fullmatch(_NUMBER, number):
        raise SpecError(f"'{text}' is no share; write for example 97% or 0.97")
    value = float(number)
    if not percent and value >= 1:
        raise SpecError(f"'{text}' may mean {number}% or {100 * value:g}%; write the %")
    if value > 100:
        raise SpecError(f"'{text}' is more than all; a share goes up to 100%")
    return value / 100 if percent else value


def parse_size(text: str) -> int:
    """``"1.5MB"`` -> 1500000, ``"64KiB"`` -> 65536, ``"800"`` -> 800 bytes. Raises SpecError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise SpecError(f"'{text}' is no size; write for example 1.5MB, 800kB or a number of bytes")
    unit: int = (1024 if match[3] else 1000) ** _POWERS[match[2].lower()]
    size = float(match[1]) * unit
    if size >= 2**63:
        raise SpecError(f"'{text[:40]}' is more than any file holds; write for example 1.5MB")
    return round(size)
