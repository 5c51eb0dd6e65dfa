"""Which nodes a user leaves out, and names that fit none."""

from onnxopt.core.patterns import absent, excluded

LABELS = ["stem", "head_one", "head_two"]


def test_names_and_patterns() -> None:
    assert excluded("head_*+stem", LABELS) == dict.fromkeys(LABELS, "excluded")
    assert excluded("head_one", LABELS) == {"head_one": "excluded"}
    assert excluded("", LABELS) == {}


def test_a_pattern_that_fits_nothing_is_told() -> None:
    assert absent("stem+head_*", LABELS) == ()
    (skip,) = absent("stem+haed_*", LABELS)
    assert skip.node == "haed_*"
    assert skip.why.startswith("exclude names no node")
