"""What a check found, and all of it together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Status: TypeAlias = Literal["passed", "failed", "not run"]
Value: TypeAlias = bool | int | float | str | None
CheckVerdict: TypeAlias = Literal["passed", "failed"]

SCHEMA = "onnxopt-check-1"


@dataclass(frozen=True)
class Finding:
    """One line of a check.

    ``why`` says what holds, what is wrong, or why it was not run. ``measured`` and ``limit``: the figure and what it
    was held against, where there are any. ``places`` are names of nodes, tensors or files; ``remedy``: what to do.
    ``because``: of what was not run, the check that this one builds on and that tells what is wrong.
    """

    check: str
    status: Status
    why: str
    measured: Value = None
    limit: Value = None
    places: tuple[str, ...] = ()
    remedy: str = ""
    because: str = ""


@dataclass(frozen=True)
class ModelFile:
    """The file that was checked: ``bytes`` include external data as far as it is there, ``sha256`` is its own."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class CheckReport:
    """All findings about one model. ``policy`` is what was demanded, as plain values; ``left_out`` are checks that were
    not wanted. The verdict is ``failed`` when a finding is, when none passed, or, where the policy says so, when one
    was not run."""

    model: ModelFile
    verdict: CheckVerdict
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...]
    policy: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    seconds: float

    def count(self, status: Status) -> int:
        """How many findings have that status."""
        return sum(f.status == status for f in self.findings)
