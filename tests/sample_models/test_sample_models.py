"""The sample models are what their README says."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

FOLDER = Path(__file__).parents[2] / "sample_models"
MODELS = ("digits_resnet", "digits_mlp", "digits_transformer")
MAX_BYTES = 2_000_000


def read(name: str) -> onnx.ModelProto:
    return onnx.load(FOLDER / f"{name}.onnx")


def images_and_labels(part: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(FOLDER / f"digits_{part}.npz", allow_pickle=False) as data:
        return data["image"], data["labels"]


def stated(name: str) -> tuple[float, int, int]:
    """Accuracy in percent, bytes and parameters, as the README's table gives them."""
    row = re.search(rf"`{name}\.onnx` \|.*\| ([\d.]+) % \| ([\d,]+) \| ([\d,]+) \|", (FOLDER / "README.md").read_text())
    assert row is not None
    accuracy, size, parameters = row.groups()
    return float(accuracy), int(size.replace(",", "")), int(parameters.replace(",", ""))


def logits(name: str, images: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(FOLDER / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


@pytest.mark.parametrize("name", MODELS)
def test_is_valid_and_small(name: str) -> None:
    onnx.checker.check_model(read(name), full_check=True)
    size = (FOLDER / f"{name}.onnx").stat().st_size
    assert size < MAX_BYTES
    assert size == stated(name)[1]


@pytest.mark.parametrize("name", MODELS)
def test_has_the_stated_parameters(name: str) -> None:
    graph = read(name).graph
    weights = {tensor.name: numpy_helper.to_array(tensor).size for tensor in graph.initializer}
    running = {key for node in graph.node if node.op_type == "BatchNormalization" for key in node.input[3:]}
    twins = [node.input[0] for node in graph.node if node.op_type == "Identity"]  # equal parameters, stored once
    parameters = sum(size for key, size in weights.items() if key not in running) + sum(weights[key] for key in twins)
    assert parameters == stated(name)[2]


@pytest.mark.parametrize("name", MODELS)
def test_reaches_the_stated_accuracy(name: str) -> None:
    images, labels = images_and_labels("test")
    share = float((logits(name, images).argmax(1) == labels).mean())
    assert share * 100 == pytest.approx(stated(name)[0], abs=0.26)  # one image of 400 may fall on a tie


@pytest.mark.parametrize("name", MODELS)
def test_batch_is_dynamic(name: str) -> None:
    images, _ = images_and_labels("calib")
    alone = np.concatenate([logits(name, images[i : i + 1]) for i in range(3)])
    assert alone.shape == (3, 10)
    np.testing.assert_allclose(alone, logits(name, images[:3]), atol=1e-4)


@pytest.mark.parametrize(("part", "count"), [("calib", 256), ("test", 400)])
def test_data_fits_the_models(part: str, count: int) -> None:
    images, labels = images_and_labels(part)
    assert images.dtype == np.float32
    assert images.shape == (count, 1, 32, 32)
    assert images.min() == 0
    assert images.max() == 1
    assert labels.dtype == np.int64
    assert labels.shape == (count,)
    assert set(labels.tolist()) == set(range(10))


def test_no_test_image_is_used_for_calibration() -> None:
    calibration, test = (images_and_labels(part)[0].reshape(-1, 32 * 32) for part in ("calib", "test"))
    assert not {row.tobytes() for row in calibration} & {row.tobytes() for row in test}


def test_resnet_has_something_for_every_pass() -> None:
    graph = read("digits_resnet").graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["Conv"] == operators["BatchNormalization"] == 12
    assert operators["Add"] == 3
    assert operators["Concat"] == 1
    groups = [attribute.i for node in graph.node for attribute in node.attribute if attribute.name == "group"]
    assert sorted(groups) == [1] * 11 + [64]


def test_mlp_is_made_of_gemm() -> None:
    operators = Counter(node.op_type for node in read("digits_mlp").graph.node)
    assert operators == {"Flatten": 1, "Gemm": 3, "Relu": 2}


def test_transformer_holds_the_usual_operators() -> None:
    operators = Counter(node.op_type for node in read("digits_transformer").graph.node)
    assert operators["LayerNormalization"] == 5
    assert operators["Softmax"] == 2
    assert operators["Erf"] == 2
    assert operators["MatMul"] == 17
