"""What a processor and a runtime take, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """``channel_step``: channel counts that are multiples of it stay in the runtime's fast float layout."""

    name: str
    channel_step: int


NATIVE = Target("native", channel_step=16)
