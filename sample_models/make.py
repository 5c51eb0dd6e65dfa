"""Train the sample models and write them, with their calibration and test images, beside this file.

    python -m pip install torch==2.13.0 onnxscript==0.7.2 onnx onnxruntime scikit-learn
    python sample_models/make.py

These tools serve this script only; onnxopt itself needs neither torch nor scikit-learn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

try:
    import torch
    from sklearn.datasets import load_digits
    from torch import Tensor, nn
    from torch.nn import functional as F
except ImportError as missing:
    raise SystemExit(
        f"make.py needs {missing.name}: python -m pip install torch==2.13.0 onnxscript==0.7.2 scikit-learn"
    ) from None

SEED = 0
THREADS = 2  # fixed: the order of a parallel sum depends on it, and so do the weights
SIZE = 32  # pixels a side, four times the 8 of the originals
CLASSES = 10
TEST_SAMPLES = 400
CALIBRATION_SAMPLES = 256
BATCH = 64


# The data


@dataclass(frozen=True)
class Split:
    """Images (count, 1, SIZE, SIZE) float32 in 0..1 and their labels (count,) int64."""

    images: Tensor
    labels: Tensor

    def save(self, path: Path) -> None:
        np.savez_compressed(path, image=self.images.numpy(), labels=self.labels.numpy())


def load_splits() -> tuple[Split, Split, Split]:
    """The digits, enlarged and shuffled: what to train on, a part of it to calibrate with, and what to test on.

    The originals have 17 grey levels. The enlarged ones are rounded to the same, which the compressed files profit from.
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


# The nets


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, and its BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions and a way around them: a 1x1 convolution where the shape changes, else nothing."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, 3, stride)
        self.second = conv(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class Branches(nn.Module):
    """A 1x1 and a 3x3 convolution side by side, their channels concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.narrow = conv(inputs, outputs // 2, 1)
        self.wide = conv(inputs, outputs // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(self.narrow(x)), F.relu(self.wide(x))], dim=1)


class Separable(nn.Module):
    """A depthwise 3x3 convolution, then a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv(inputs, inputs, 3, stride, groups=inputs)
        self.pointwise = conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.pointwise(F.relu(self.depthwise(x))))


class ResNet(nn.Module):
    """Three resolutions, 32, 64 and 128 channels, and one of each kind of block that makes pruning interesting."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 32, 3)
        self.blocks = nn.Sequential(
            Residual(32, 32),
            Residual(32, 64, stride=2),
            Branches(64, 64),
            Separable(64, 128, stride=2),
            Residual(128, 128),
        )
        self.head = nn.Linear(128, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(image)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Mlp(nn.Module):
    """Three fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(SIZE * SIZE, 384),
            nn.ReLU(),
            nn.Linear(384, 192),
            nn.ReLU(),
            nn.Linear(192, CLASSES),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


class Attention(nn.Module):
    """Multi-head self-attention, written out in matrix products."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.split = (-1, SIZE, heads, width // heads)
        self.whole = (-1, SIZE, width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).reshape(self.split).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / self.split[-1] ** 0.5, dim=-1)
        return self.out((weights @ value).transpose(1, 2).reshape(self.whole))


class Encoder(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed(self.feed_norm(x))


class Transformer(nn.Module):
    """Every row of the image is a token; two layers, then the mean over the tokens."""

    def __init__(self, width: int = 128, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(SIZE, width)
        self.position = nn.Parameter(torch.randn(SIZE, width) * 0.02)
        self.layers = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.layers(self.embed(image.squeeze(1)) + self.position)
        return self.head(self.norm(x).mean(1))


# Training, export, measurement


@dataclass(frozen=True)
class Recipe:
    """A net, and how to train it."""

    name: str
    net: type[nn.Module]
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
    """Write the net as it is, BatchNormalization unfolded, with a dynamic batch."""
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
    parser = argparse.ArgumentParser(description="Train the sample models.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--only", choices=[recipe.name for recipe in RECIPES], help="make this one model only")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)

    training, calibration, test = load_splits()
    calibration.save(options.out / "digits_calib.npz")
    test.save(options.out / "digits_test.npz")
    print(f"{'model':<20} {'accuracy':>8} {'bytes':>9} {'parameters':>10} {'seconds':>7}")
    for recipe in RECIPES:
        if options.only not in (None, recipe.name):
            continue
        start = time.perf_counter()
        net = train(recipe, training)
        path = options.out / f"{recipe.name}.onnx"
        export(net, path)
        parameters = sum(p.numel() for p in net.parameters())
        seconds = time.perf_counter() - start
        share = accuracy(path, test)
        print(f"{recipe.name:<20} {share:>8.2%} {path.stat().st_size:>9,} {parameters:>10,} {seconds:>7.0f}", flush=True)


if __name__ == "__main__":
    main()
