"""Layers whose products overflow on x86 processors without VNNI: told from the file alone."""

from __future__ import annotations

from dataclasses import dataclass

from onnxopt.graph.model import Model


@dataclass(frozen=True)
class Risk:
    """``channels`` of the ``outputs`` of a layer can overflow; ``worst`` is the largest sum of a pair of weights."""

    node: str
    op: str
    channels: int
    outputs: int
    worst: int


def overflow_risk(model: Model) -> tuple[Risk, ...]:
    """The layers that can overflow on x86 processors without VNNI."""
    return ()
