"""The float model that every candidate is measured against, in ONNX Runtime, in one thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from onnxopt import load, open_dataset
from onnxopt.check.quality import Comparison, Quality
from onnxopt.graph.signature import Array, Feed
from onnxopt.runtime.session import Session
from onnxopt.runtime.timing import Timing, interleave

_ROUNDS = 3


class Reference:
    """The float model and its answers on the evaluation samples, ``batch`` of them at a time."""

    def __init__(self, model: Path, samples: Path, batch: int = 1) -> None:
        self.path = model
        self.model = load(model)
        self.dataset = open_dataset(samples, self.model.inputs)
        self.feeds: list[Feed] = list(self.dataset.batches(batch))

    @cached_property
    def answers(self) -> list[dict[str, Array]]:
        session = Session(self.path)
        return [session.run(feed) for feed in self.feeds]

    def compare(self, candidate: Path) -> Quality:
        """How far a candidate's answers are. Raises ValueError where it lacks an output."""
        session = Session(candidate)
        if missing := sorted(set(self.answers[0]) - set(session.outputs)):
            raise ValueError(f"the file has no output '{missing[0]}'")
        comparison = Comparison(self.dataset.labels)
        for feed, expected in zip(self.feeds, self.answers, strict=True):
            comparison.add(feed, expected, session.run(feed))
        return comparison.result(self.dataset.count)

    def speed(self, candidate: Path, seconds: float) -> dict[str, Any]:
        """The float model's time over the candidate's, in turns in one process, at batch 1, and where it surely lies.

        ``seconds`` are for all rounds together.
        """
        feed, rounds = next(self.dataset.batches(1)), []
        for _ in range(_ROUNDS):
            sessions = Session(self.path), Session(candidate)
            rounds.append(interleave(*sessions, feed, budget_s=seconds / _ROUNDS, min_pairs=3))
        found = Timing.over(rounds)
        return {"speed": found.speedup, "speed_low": found.speedup_low, "speed_high": found.speedup_high}


def or_error(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it measures, or ``error``: the files of other tools may hold anything, and what goes wrong is in the row."""
    try:
        return measure()
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0][:200]}"}
