"""What the machine at hand does with products that overflow."""

from __future__ import annotations

import pytest

from onnxopt.runtime.machine import machine
from onnxopt.runtime.probe import saturates
from onnxopt.runtime.target import NATIVE, TARGETS, X86_AVX2, X86_AVX512_VNNI


def test_a_target_that_says_it_is_believed() -> None:
    assert saturates(X86_AVX2)
    assert not saturates(X86_AVX512_VNNI)
    assert sum(saturates(t) for t in TARGETS.values() if t is not NATIVE) == 3


def test_the_machine_at_hand_does_what_its_instructions_say() -> None:
    instructions = machine()["instructions"]
    if not instructions:
        pytest.skip("this system does not list its processor's instructions")
    assert isinstance(instructions, list)
    if "avx512f" in instructions:
        expected = "avx512_vnni" not in instructions
    else:
        expected = "avx2" in instructions and "avx_vnni" not in instructions
    assert saturates(NATIVE) == expected
