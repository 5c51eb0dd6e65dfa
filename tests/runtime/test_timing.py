"""Timing of two sessions in turns."""

from __future__ import annotations

import gc

import numpy as np
import onnx.parser
import pytest
from scipy.stats import binom

from onnxopt.graph.model import Model
from onnxopt.runtime import timing
from onnxopt.runtime.session import Session

HEAD = '<ir_version: 9, opset_import: ["" : 17]> '


def session(products: int) -> Session:
    """So many matrix products of 256 x 256 in a row."""
    nodes = " ".join(f"t{i + 1} = MatMul (t{i}, t{i})" for i in range(products))
    text = f"g (float[256,256] t0) => (float[256,256] t{products}) {{ {nodes} }}"
    return Session(Model.from_proto(onnx.parser.parse_model(HEAD + text)))


FEED = {"t0": np.full((256, 256), 1 / 256, np.float32)}


def test_twice_the_work_takes_about_twice_the_time() -> None:
    found = timing.interleave(session(8), session(4), FEED, budget_s=0.4)
    assert 1.5 < found.speedup < 2.6
    assert found.speedup_low <= found.speedup <= found.speedup_high
    assert len(found.reference_ms) == len(found.candidate_ms) >= 20
    assert np.median(found.reference_ms) > np.median(found.candidate_ms) > 0


def test_a_model_against_itself_is_as_fast() -> None:
    same = session(4)
    found = timing.interleave(same, same, FEED, budget_s=0.3)
    assert found.speedup == pytest.approx(1, abs=0.15)


def test_slow_models_get_the_least_number_of_pairs_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = timing.interleave(session(2), session(2), FEED, budget_s=0.0)
    assert len(found.reference_ms) == 5
    monkeypatch.setattr(timing, "_MAX_PAIRS", 7)
    assert len(timing.interleave(session(1), session(1), FEED, budget_s=5).reference_ms) == 7


def test_the_order_alternates_and_garbage_collection_rests() -> None:
    calls: list[tuple[str, bool]] = []

    class Recorder(Session):
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, feed: object) -> dict[str, np.ndarray]:
            calls.append((self.name, gc.isenabled()))
            return {}

    timing.interleave(Recorder("a"), Recorder("b"), {}, budget_s=0, min_pairs=4)
    timed = calls[-8:]
    assert "".join(name for name, _ in timed) == "abbaabba"
    assert not any(collecting for _, collecting in timed)
    assert gc.isenabled()


@pytest.mark.parametrize("n", [6, 9, 20, 101, 1000])
def test_the_interval_covers_the_median_with_95_percent(n: int) -> None:
    rank = timing._rank(n)
    assert binom.cdf(rank, n, 0.5) <= 0.025 < binom.cdf(rank + 1, n, 0.5)


def test_few_values_are_bounded_by_their_extremes() -> None:
    assert [timing._rank(n) for n in (1, 2, 5)] == [0, 0, 0]


def test_idle_sessions_do_not_spin_beside_the_one_that_is_timed() -> None:
    options = session(1)._session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_rounds_are_joined_by_their_median_and_widest_interval() -> None:
    times = np.ones(2)
    rounds = [
        timing.Timing(times, times * 2, *figures) for figures in ((1.0, 0.9, 1.1), (3.0, 2.9, 3.1), (1.2, 1.1, 1.3))
    ]
    joined = timing.Timing.over(rounds)
    assert (joined.speedup, joined.speedup_low, joined.speedup_high) == (1.2, 0.9, 3.1)
    assert joined.reference_ms.tolist() == [1.0] * 6
    assert joined.candidate_ms.tolist() == [2.0] * 6
