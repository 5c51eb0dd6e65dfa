"""What a processor and a runtime take, as data."""

from __future__ import annotations

from dataclasses import dataclass

from onnxopt.errors import SpecError
from onnxopt.numerics.qparams import INT8, UINT8, QuantType
from onnxopt.runtime.machine import instructions
from onnxopt.spelling import nearest


@dataclass(frozen=True, kw_only=True)
class Target:
    """``channel_step``: channel counts that are multiples of it stay in the runtime's fast float layout.

    ``activations``: the type that its integer kernels like best. ``saturates``: they add products of unsigned
    activations and signed weights in pairs into 16 bits, which overflow; None: as this machine does it.
    """

    name: str
    channel_step: int = 16
    activations: QuantType = UINT8
    saturates: bool | None = False


_STEP = 16 if "avx512f" in instructions() else 8
NATIVE = Target(name="native", channel_step=_STEP, saturates=None)
# Right everywhere, at the price that the weakest processor asks.
ANY = Target(name="any", saturates=True)
X86_AVX2 = Target(name="x86-64-avx2", channel_step=8, saturates=True)
X86_AVX2_VNNI = Target(name="x86-64-avx2vnni", channel_step=8)
X86_AVX512 = Target(name="x86-64-avx512", saturates=True)
X86_AVX512_VNNI = Target(name="x86-64-avx512vnni")
ARM64 = Target(name="arm64", channel_step=8, activations=INT8)

TARGETS = {t.name: t for t in (NATIVE, ANY, X86_AVX2, X86_AVX2_VNNI, X86_AVX512, X86_AVX512_VNNI, ARM64)}


def find_target(name: str) -> Target:
    """The target of that name. Raises SpecError for one that is not known."""
    if name not in TARGETS:
        raise SpecError(f"no target is named {name!r}{nearest(name, TARGETS)}")
    return TARGETS[name]


def fast_counts(channels: int, step: int) -> list[int]:
    """The channel counts up to ``channels`` that are faster than the next, rising; ``step`` is a target's.

    ONNX Runtime fills its blocks up, so any other count takes as long as the next whole block; a layer that reads half
    a block or less reads its channels one by one, at a price in proportion, if they are a multiple of four.
    """
    few = range(4, min(step // 2, channels) + 1, 4)
    return sorted({*few, *range(step, channels + 1, step), channels})
