"""The targets that can be named."""

from __future__ import annotations

import re

import pytest

from onnxopt.errors import SpecError
from onnxopt.numerics.qparams import INT8, UINT8
from onnxopt.runtime.target import ANY, ARM64, NATIVE, TARGETS, X86_AVX2, X86_AVX512_VNNI, fast_counts, find_target


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_found_by_its_name(name: str) -> None:
    assert find_target(name).name == name


def test_what_quantization_asks_of_a_target() -> None:
    assert (ANY.activations, ANY.saturates) == (UINT8, True)
    assert (X86_AVX2.activations, X86_AVX2.saturates) == (UINT8, True)
    assert (X86_AVX512_VNNI.activations, X86_AVX512_VNNI.saturates) == (UINT8, False)
    assert (ARM64.activations, ARM64.saturates) == (INT8, False)
    assert NATIVE.saturates is None


def test_an_unknown_target_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(SpecError, match=re.escape("no target is named 'avx2'; did you mean 'x86-64-avx2'")):
        find_target("avx2")


@pytest.mark.parametrize(
    ("channels", "step", "counts"),
    [
        (64, 16, [4, 8, 16, 32, 48, 64]),
        (50, 16, [4, 8, 16, 32, 48, 50]),
        (24, 8, [4, 8, 16, 24]),
        (6, 16, [4, 6]),
        (3, 8, [3]),
    ],
)
def test_counts_that_are_worth_going_down_to(channels: int, step: int, counts: list[int]) -> None:
    assert fast_counts(channels, step) == counts
