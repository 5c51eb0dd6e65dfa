"""What each release of ONNX Runtime reads: measured by asking the releases themselves (the last patch of each)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxopt.errors import SpecError


@dataclass(frozen=True)
class Release:
    """The highest opset of ai.onnx and ai.onnx.ml and the highest IR version that the release ``version`` reads."""

    version: tuple[int, int]
    opset: int
    ml: int
    ir: int

    def __str__(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"


RELEASES = tuple(
    Release((1, minor), opset, ml, ir)
    for minor, opset, ml, ir in (
        (15, 19, 3, 9),
        (16, 19, 3, 9),
        (17, 20, 4, 9),
        (18, 21, 5, 10),
        (19, 21, 5, 10),
        (20, 21, 5, 10),
        (21, 22, 5, 10),
        (22, 22, 5, 10),
        (23, 23, 5, 11),
        (24, 25, 5, 13),
        (25, 26, 5, 13),
        (26, 26, 5, 13),
        (27, 26, 5, 13),
        (28, 26, 5, 13),
        (29, 26, 5, 13),
        (30, 26, 5, 13),
        (31, 26, 5, 13),
    )
)
NEWEST = RELEASES[-1]


def parse_version(text: str) -> tuple[int, int]:
    """``"1.16"`` or ``"1.16.3"`` -> (1, 16). Raises SpecError."""
    match = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(\.\d{1,4})?", text.strip())
    if match is None:
        raise SpecError(f"'{text[:40]}' is no release of ONNX Runtime; write for example 1.16")
    return int(match[1]), int(match[2])


def find_release(version: tuple[int, int]) -> Release | None:
    """What a release reads: one newer than all here, what the newest does at least. None: it is not known."""
    if version > NEWEST.version:
        return NEWEST
    return next((r for r in RELEASES if r.version == version), None)
