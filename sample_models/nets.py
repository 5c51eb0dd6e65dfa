"""The nets behind the sample models: images float32 (N, 1, SIZE, SIZE) in 0..1 to logits (N, CLASSES)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 32  # pixels a side, four times the 8 of the originals
CLASSES = 10


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
