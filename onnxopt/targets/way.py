"""A way to run a job on a target: natively, with a masked processor, in emulation, or on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from onnxopt.errors import TargetError
from onnxopt.runtime.exchange import Answer, Job


class Way(Protocol):
    """``how`` in words: "natively", "emulated by QEMU 10.0.13"; ``timed``: its clock says how fast the target is.

    ``slowdown``: how many times longer than natively a float model takes at most, roughly, and ``slowdown_int8`` a
    quantized one: for time limits, and for how much is worth running.
    """

    @property
    def how(self) -> str: ...
    @property
    def timed(self) -> bool: ...
    @property
    def slowdown(self) -> float: ...
    @property
    def slowdown_int8(self) -> float: ...

    def run(self, job: Job) -> Answer:
        """Run a job there. Raises ExecutionError where it fails there, TargetError where the target cannot be used."""
        ...


@dataclass(frozen=True)
class Unavailable:
    """Why a target cannot be run from here, and what would change that."""

    why: str
    remedy: str

    @classmethod
    def because(cls, error: TargetError) -> Unavailable:
        """The same as an error says: why; remedy."""
        why, _, remedy = str(error).partition("; ")
        return cls(why, remedy)

    def __str__(self) -> str:
        return f"{self.why}; {self.remedy}" if self.remedy else self.why
