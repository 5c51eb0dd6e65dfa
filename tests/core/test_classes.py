"""Which outputs are answers of a classifier or a language model, and how they are counted."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.core.quality import Comparison, Quality

RNG = np.random.default_rng(0)
N = 40
IMAGE = {"x": np.zeros((N, 3, 4, 4), np.float32)}


def scores(classes: int = 10) -> np.ndarray:
    return RNG.standard_normal((N, classes)).astype(np.float32)


def compare(
    reference: dict[str, np.ndarray],
    candidate: dict[str, np.ndarray],
    labels: np.ndarray | None = None,
    feed: dict[str, np.ndarray] = IMAGE,
    samples: int = N,
) -> Quality:
    comparison = Comparison(labels)
    comparison.add(feed, reference, candidate)
    return comparison.result(samples)


def changed(a: np.ndarray, rows: int) -> np.ndarray:
    """The same scores, with another best class in the first rows."""
    b = a.copy()
    b[:rows] = -b[:rows]
    return b


def test_agreement_without_labels() -> None:
    a = scores()
    found = compare({"y": a}, {"y": changed(a, 4)})
    assert found.agreement == 0.9
    assert found.accuracy is found.accuracy_reference is found.accuracy_top5 is None


def test_accuracy_with_labels_in_batches() -> None:
    a = scores()
    labels = a.argmax(1)
    labels[-5:] = (labels[-5:] + 1) % 10  # the reference is wrong there
    comparison = Comparison(labels)
    b = changed(a, 4)
    for rows in np.split(np.arange(N), [7, 20]):
        comparison.add(IMAGE, {"y": a[rows]}, {"y": b[rows]})
    found = comparison.result(N)
    assert (found.accuracy, found.accuracy_reference) == (31 / N, 35 / N)
    ranks = [(x > x[np.arange(N), labels][:, None]).sum(1) for x in (b, a)]
    assert (found.accuracy_top5, found.accuracy_top5_reference) == ((ranks[0] < 5).mean(), (ranks[1] < 5).mean())
    assert found.notes == ()


def test_no_top_five_of_five_classes() -> None:
    a = scores(5)
    found = compare({"y": a}, {"y": a}, a.argmax(1))
    assert (found.accuracy, found.accuracy_top5) == (1, None)


def test_nan_is_no_answer() -> None:
    a = scores()
    a[:, 0] = 99
    b = a.copy()
    b[:10, 0] = np.nan
    found = compare({"y": a}, {"y": b}, np.zeros(N, np.int64))
    assert (found.agreement, found.accuracy, found.accuracy_reference) == (0.75, 0.75, 1)
    assert found.accuracy_top5 == 0.75


@pytest.mark.parametrize(
    ("output", "feed"),
    [
        pytest.param(np.zeros((N, 1), np.float32), IMAGE, id="one number: a regressor"),
        pytest.param(np.zeros((N, 6, 4), np.float32), IMAGE, id="boxes"),
        pytest.param(np.zeros((7, 10), np.float32), IMAGE, id="rows that are no samples"),
        pytest.param(np.zeros((N, 640), np.float32), {"x": np.zeros((N, 640), np.float32)}, id="an autoencoder"),
        pytest.param(np.zeros((N, 6, 40), np.float32), IMAGE, id="features in steps"),
        pytest.param(np.zeros((N, 6, 2), np.float32), {"x": np.zeros((N, 6), np.uint8)}, id="two levels a token"),
        pytest.param(np.zeros((N, 3), np.bool_), IMAGE, id="flags"),
    ],
)
def test_what_is_no_classifier(output: np.ndarray, feed: dict[str, np.ndarray]) -> None:
    assert compare({"y": output}, {"y": output}, feed=feed).agreement is None


def test_one_output_of_many_is_no_classifier_without_labels() -> None:
    a = scores()
    outputs = {"boxes": np.zeros((N, 4), np.float32), "y": a}
    assert compare(outputs, outputs).agreement is None
    labelled = compare(outputs, outputs, a.argmax(1))
    assert (labelled.agreement, labelled.accuracy) == (1, 1)


def test_an_autoencoders_shape_is_a_classifier_with_labels() -> None:
    a = scores()
    assert compare({"y": a}, {"y": a}, a.argmax(1), {"x": a}).accuracy == 1


def test_classes_themselves() -> None:
    best = RNG.integers(0, 10, N)
    other = best.copy()
    other[:4] = (other[:4] + 1) % 10
    for shape in ((N,), (N, 1)):
        found = compare({"y": best.reshape(shape)}, {"y": other.reshape(shape)}, best)
        assert (found.agreement, found.accuracy, found.accuracy_reference, found.accuracy_top5) == (0.9, 0.9, 1, None)


def test_a_language_model_answers_for_each_token() -> None:
    tokens = {"ids": np.zeros((2, 5), np.int64)}
    a = RNG.standard_normal((2, 5, 50)).astype(np.float32)
    b = a.copy()
    b[0, 0] = -b[0, 0]
    past = np.zeros((2, 4, 5, 8), np.float32)
    found = compare({"logits": a, "present": past}, {"logits": b, "present": past}, feed=tokens, samples=2)
    assert found.agreement == 0.9


def test_another_shape_is_no_agreement() -> None:
    a = scores()
    assert compare({"y": a}, {"y": a[:, :9]}).agreement == 0


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (np.full(N, 10), "labels not used: they run from 10 to 10, and the model knows 10 classes from 0"),
        (np.full(N, -1), "labels not used: they run from -1 to -1, and the model knows 10 classes from 0"),
        (
            np.full(N, 3),
            "labels not used: the original itself is right for 2.5 % only: are the classes numbered otherwise?",
        ),
    ],
)
def test_labels_that_do_not_fit(labels: np.ndarray, note: str) -> None:
    a = scores()
    a[:, 7] = 99
    a[0, 3] = 100
    found = compare({"y": a}, {"y": a}, labels)
    assert (found.accuracy, found.agreement, found.notes) == (None, 1, (note,))


def test_labels_for_what_is_no_classifier() -> None:
    boxes = np.zeros((N, 6, 4), np.float32)
    found = compare({"y": boxes}, {"y": boxes}, np.zeros(N, np.int64))
    assert found.notes == ("labels not used: no output looks like scores of classes",)


def test_a_form_that_changes_is_no_classifier() -> None:
    comparison = Comparison()
    for output in (scores(), np.zeros((N, 3, 4), np.float32)):
        comparison.add(IMAGE, {"y": output}, {"y": output})
    assert comparison.result(2 * N).agreement is None
