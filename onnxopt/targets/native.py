"""This machine as it is, in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxopt.runtime.exchange import Answer, Job
from onnxopt.runtime.local import Launch, run_in_child


@dataclass(frozen=True)
class Native:
    """The processor at hand; ``provider``: another of ONNX Runtime's execution providers first."""

    provider: str | None = None
    how: str = "natively"
    timed: bool = True
    slowdown: float = 1
    slowdown_int8: float = 1

    def run(self, job: Job) -> Answer:
        """Run a job. Raises ExecutionError."""
        if self.provider is not None:
            job = replace(job, providers=(self.provider, *job.providers))
        return run_in_child(job, Launch())
