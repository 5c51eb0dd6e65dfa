"""The order of the real passes: one for all of them, whatever order they are named in."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.core import spec
from onnxopt.core.manager import plan

NAMES = sorted(spec.known_passes())
LOSSY = ["prune", "svd", "sparsify", "quant", "quant-dynamic", "quant-weights", "cluster", "fp16"]


def order(*specs: str) -> list[str]:
    return [p.name for p in plan(spec.parse(",".join(specs))).steps]


def test_the_whole_order() -> None:
    exact = ["inline-functions", "freeze-defaults", "fold-constants", "clean", "fold-bn", "conv-shortcut"]
    assert order(*NAMES) == exact + LOSSY
    assert order(*reversed(NAMES)) == exact + LOSSY


@pytest.mark.parametrize(("a", "b"), list(combinations(NAMES, 2)))
def test_each_pair(a: str, b: str) -> None:
    assert order(a, b) == order(b, a)
    assert [n for n in order(*NAMES) if n in order(a, b)] == order(a, b)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(NAMES), unique=True, min_size=1), st.randoms())
def test_any_of_them(names: list[str], random: object) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert order(*names) == order(*shuffled)
    assert [n for n in order(*NAMES) if n in order(*names)] == order(*names)


@pytest.mark.parametrize("others", [["svd"], ["fold-bn"], ["quant"], ["conv-shortcut", "fp16"], ["fold-bn", "cluster"]])
def test_scales_of_normalisations_are_read_before_they_are_folded(others: list[str]) -> None:
    prune = "prune:criterion=bn-gamma:ratio=0.2"
    found = order(*others, prune)
    assert found == order(prune, *others)
    assert found.index("prune") < found.index("fold-bn")
    assert found.index("clean") < found.index("prune") if "clean" in found else True


def test_a_note_says_that_the_order_is_another() -> None:
    (note,) = (n for n in plan(spec.parse("quant,svd")).notes if "order" in n)
    assert note == "order changed from quant,svd to svd,quant: --keep-order keeps yours"
