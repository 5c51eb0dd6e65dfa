"""This machine as it is, in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxopt.errors import TargetError
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
        """Run a job. Raises ExecutionError; TargetError where the provider is installed, but does not start."""
        if self.provider is None:
            return run_in_child(job, Launch())
        answer = run_in_child(replace(job, providers=(self.provider, *job.providers)), Launch())
        if any(self.provider not in run.providers for run in answer.runs):  # ONNX Runtime then takes its own in silence
            raise TargetError(f"{self.provider} does not start here: its own libraries may be missing")
        return answer
