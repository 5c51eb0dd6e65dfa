"""What a processor and a runtime take, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from onnxopt.errors import SpecError
from onnxopt.numerics.qparams import INT8, UINT8, QuantType
from onnxopt.runtime.machine import architecture, instructions
from onnxopt.spelling import nearest

Architecture: TypeAlias = Literal["x86-64", "arm64"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """``channel_step``: channel counts that are multiples of it stay in the runtime's fast float layout.

    ``activations``: the type that its integer kernels like best. ``saturates``: they add products of unsigned
    activations and signed weights in pairs into 16 bits, which overflow; None: as this machine does it. ``float16``:
    float16 products are summed in float16. ``instructions`` are those by which ONNX Runtime chooses its kernels, in
    Linux's spelling. ``architecture`` None: that of this machine, or any. ``cpu`` is QEMU's name of such a processor,
    ``device`` what else there is of it: "Raspberry Pi 4".
    """

    name: str
    channel_step: int = 16
    activations: QuantType = UINT8
    saturates: bool | None = False
    float16: bool = False
    architecture: Architecture | None = None
    instructions: tuple[str, ...] = ()
    cpu: str | None = None
    device: str = ""


_STEP = 16 if "avx512f" in instructions() else 8
# A system that does not tell may have it: there, as everywhere, what is no quicker is not done.
_FLOAT16 = architecture() == "arm64" and ("asimdhp" in instructions() or not instructions())
NATIVE = Target(name="native", channel_step=_STEP, saturates=None, float16=_FLOAT16)
# Right everywhere, at the price that the weakest processor asks.
ANY = Target(name="any", saturates=True)

_AVX = ("sse4_1", "avx")
_AVX2 = (*_AVX, "f16c", "fma", "avx2")
_AVX512 = (*_AVX2, "avx512f")


def _x86(level: str, instructions: tuple[str, ...], device: str, cpu: str | None = None) -> Target:
    return Target(
        name=f"x86-64-{level}",
        channel_step=16 if "avx512f" in instructions else 8,
        # Without VNNI, and from AVX2 on: below that the integer kernels are exact again.
        saturates="avx2" in instructions and not {"avx_vnni", "avx512_vnni"} & set(instructions),
        architecture="x86-64",
        instructions=instructions,
        cpu=cpu,
        device=device,
    )


X86_SSE42 = _x86("sse42", ("sse4_1",), "Atom, Celeron, before 2011", cpu="Nehalem")
X86_AVX = _x86("avx", _AVX, "Sandy Bridge, Bulldozer", cpu="SandyBridge")
X86_AVX2 = _x86("avx2", _AVX2, "Haswell to Coffee Lake, Zen 1 to 3", cpu="Haswell")
X86_AVX2_VNNI = _x86("avx2vnni", (*_AVX2, "avx_vnni"), "Alder Lake and later, N100")
X86_AVX512 = _x86("avx512", _AVX512, "Skylake-SP, Skylake-X")
X86_AVX512_VNNI = _x86("avx512vnni", (*_AVX512, "avx512_vnni"), "Cascade Lake and later, Zen 4 and later")

_NEON = ("asimd",)
_DOT = (*_NEON, "asimdhp", "asimddp")
_SVE = (*_DOT, "i8mm", "bf16", "sve")


def _arm(cpu: str, instructions: tuple[str, ...], device: str) -> Target:
    return Target(
        name=f"arm64-{cpu}",
        channel_step=8,
        activations=INT8,
        float16="asimdhp" in instructions,
        architecture="arm64",
        instructions=instructions,
        cpu=cpu,
        device=device,
    )


# Any of them: what a model is made for, not what it runs on.
ARM64 = Target(name="arm64", channel_step=8, activations=INT8, architecture="arm64")
CORTEX_A53 = _arm("cortex-a53", _NEON, "Raspberry Pi 3, many phones and boxes")
CORTEX_A55 = _arm("cortex-a55", _DOT, "small cores of phones since 2018, RK3588")
CORTEX_A72 = _arm("cortex-a72", _NEON, "Raspberry Pi 4, Graviton 1")
CORTEX_A76 = _arm("cortex-a76", _DOT, "Raspberry Pi 5, RK3588")
NEOVERSE_N1 = _arm("neoverse-n1", _DOT, "Graviton 2, Ampere Altra")
NEOVERSE_V1 = _arm("neoverse-v1", _SVE, "Graviton 3")
NEOVERSE_N2 = _arm("neoverse-n2", (*_SVE, "sve2"), "Cobalt 100, Yitian 710")

X86 = (X86_AVX512_VNNI, X86_AVX512, X86_AVX2_VNNI, X86_AVX2, X86_AVX, X86_SSE42)
ARM = (CORTEX_A53, CORTEX_A55, CORTEX_A72, CORTEX_A76, NEOVERSE_N1, NEOVERSE_V1, NEOVERSE_N2)
TARGETS = {t.name: t for t in (NATIVE, ANY, *X86, ARM64, *ARM)}

# Names that people know their machines by.
ALIASES = {
    "raspberrypi3": CORTEX_A53.name,
    "raspberrypi4": CORTEX_A72.name,
    "raspberrypi5": CORTEX_A76.name,
    "graviton2": NEOVERSE_N1.name,
    "graviton3": NEOVERSE_V1.name,
    "haswell": X86_AVX2.name,
    "skylake-server": X86_AVX512.name,
    "cascadelake": X86_AVX512_VNNI.name,
}
# What a model is run on: of each set of processors that choose the same kernels, one.
GROUPS = {
    "x86": (NATIVE, *X86),
    "arm64": (CORTEX_A53, CORTEX_A72, CORTEX_A76, NEOVERSE_V1),
    "all": (NATIVE, *X86, *ARM),
}


def find_target(name: str) -> Target:
    """The target of that name or alias. Raises SpecError for one that is not known."""
    known = ALIASES.get(name, name)
    if known not in TARGETS:
        raise SpecError(f"no target is named {name!r}{nearest(name, (*TARGETS, *ALIASES))}")
    return TARGETS[known]


def fast_counts(channels: int, step: int) -> list[int]:
    """The channel counts up to ``channels`` that are faster than the next, rising; ``step`` is a target's.

    ONNX Runtime fills its blocks up, so any other count takes as long as the next whole block; a layer that reads half
    a block or less reads its channels one by one, at a price in proportion, if they are a multiple of four.
    """
    few = range(4, min(step // 2, channels) + 1, 4)
    return sorted({*few, *range(step, channels + 1, step), channels})
