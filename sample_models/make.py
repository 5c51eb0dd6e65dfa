"""Train the sample models and write them, with their calibration and test images, beside this file.

    python -m pip install torch==2.13.0 onnx onnxruntime scikit-learn
    python sample_models/make.py

torch and scikit-learn serve this script only; onnxopt itself needs neither.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

try:
    import torch
    from nets import SIZE, Mlp, ResNet, Transformer
    from sklearn.datasets import load_digits
    from torch import Tensor, nn
    from torch.nn import functional as F
except ImportError as missing:
    raise SystemExit(
        f"make.py needs {missing.name}; run: python -m pip install torch==2.13.0 onnx onnxruntime scikit-learn"
    ) from None

FOLDER = Path(__file__).parent
SEED = 0
THREADS = 2  # fixed: the order of a parallel sum depends on it, and so do the weights
TEST_SAMPLES = 400
CALIBRATION_SAMPLES = 256
BATCH = 64


@dataclass(frozen=True)
class Split:
    """Images (count, 1, SIZE, SIZE) float32 in 0..1 and their labels (count,) int64."""

    images: Tensor
    labels: Tensor

    def save(self, path: Path) -> None:
        np.savez_compressed(path, image=self.images.numpy(), labels=self.labels.numpy())


def load_splits() -> tuple[Split, Split, Split]:
    """The digits, enlarged and shuffled: what to train on, a part of it to calibrate with, and what to test on.

    The originals have 17 grey levels; the enlarged ones are rounded to the same, so that the files compress well.
    """
    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    images = (F.interpolate(small, size=SIZE, mode="bilinear", align_corners=False) * 16).round() / 16
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    test, train = order[:TEST_SAMPLES], order[TEST_SAMPLES:]
    calibration = train[:CALIBRATION_SAMPLES]
    train_split, calibration_split, test_split = (Split(images[i], labels[i]) for i in (train, calibration, test))
    return train_split, calibration_split, test_split


def augment(images: Tensor) -> Tensor:
    """Each image turned by up to 10 degrees, scaled by up to 10 % and moved by up to 3 pixels."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * torch.pi / 18
    scale = 1 + (torch.rand(count, 2) * 2 - 1) * 0.1
    shift = (torch.rand(count, 2) * 2 - 1) * 2 * 3 / SIZE
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(count, 2, 2)
    affine = torch.cat([turn * scale.unsqueeze(1), shift.unsqueeze(2)], dim=2)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


@dataclass(frozen=True)
class Recipe:
    """A net, and how to train it."""

    name: str
    net: Callable[[], nn.Module]
    epochs: int
    peak_rate: float


RECIPES = (
    Recipe("digits_resnet", ResNet, epochs=20, peak_rate=4e-3),
    Recipe("digits_mlp", Mlp, epochs=150, peak_rate=2e-3),
    Recipe("digits_transformer", Transformer, epochs=60, peak_rate=1.5e-3),
)


def batches(data: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches of one epoch, shuffled; the last, shorter one is left out."""
    order = torch.randperm(len(data.labels))
    for index in order[: len(order) // BATCH * BATCH].split(BATCH):
        yield augment(data.images[index]), data.labels[index]


def train(recipe: Recipe, data: Split) -> nn.Module:
    """The net of the recipe, trained from a fixed seed, in evaluation mode."""
    torch.manual_seed(SEED)
    net = recipe.net()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    steps = recipe.epochs * (len(data.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=steps)
    for _ in range(recipe.epochs):
        for images, labels in batches(data):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def export(net: nn.Module, path: Path) -> None:
    """Write the net as it is, with a dynamic batch.

    It is the older of torch's two exporters, because that one can leave BatchNormalization unfolded (PRESERVE). It
    warns of its age, and that folding constants may freeze weights, which is what is wanted here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="It is recommended that constant folding be turned off")
        torch.onnx.export(
            net,
            (torch.zeros(1, 1, SIZE, SIZE),),
            path,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
        )


def accuracy(path: Path, data: Split) -> float:
    """The share of images that the saved model, run by ONNX Runtime, classifies rightly."""
    (logits,) = ort.InferenceSession(path).run(["logits"], {"image": data.images.numpy()})
    return float((logits.argmax(1) == data.labels.numpy()).mean())


def main() -> None:
    """Write the data and the models, and print a line about each model."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    training, calibration, test = load_splits()
    calibration.save(FOLDER / "digits_calib.npz")
    test.save(FOLDER / "digits_test.npz")
    print(f"{'model':<20} {'accuracy':>8} {'bytes':>9} {'parameters':>10} {'seconds':>7}")
    for recipe in RECIPES:
        start = time.perf_counter()
        net = train(recipe, training)
        path = FOLDER / f"{recipe.name}.onnx"
        export(net, path)
        parameters = sum(p.numel() for p in net.parameters())
        seconds = time.perf_counter() - start
        size = path.stat().st_size
        print(f"{recipe.name:<20} {accuracy(path, test):>8.2%} {size:>9,} {parameters:>10,} {seconds:>7.0f}")


if __name__ == "__main__":
    main()
