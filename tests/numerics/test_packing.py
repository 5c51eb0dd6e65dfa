"""Runs of things that fit into so much room, against what they shall hold to."""

from itertools import chain, pairwise

from hypothesis import given
from hypothesis import strategies as st

from onnxopt.numerics.packing import packed


@given(sizes=st.lists(st.integers(0, 20)), room=st.integers(1, 30), most=st.integers(1, 5))
def test_runs_are_as_long_as_they_can_be(sizes: list[int], room: int, most: int) -> None:
    parts = list(packed(sizes, lambda size: size, room, most))
    assert list(chain(*parts)) == sizes
    assert all(1 <= len(p) <= most and (len(p) == 1 or sum(p) <= room) for p in parts)
    assert all(len(a) == most or sum(a) + b[0] > room for a, b in pairwise(parts))


def test_any_number_goes_together_unless_told() -> None:
    assert list(packed("abc", lambda _: 0, 1)) == [["a", "b", "c"]]
    assert list(packed("", len, 1)) == []
