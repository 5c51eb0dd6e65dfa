"""The targets that can be named."""

from __future__ import annotations

import dataclasses
import re

import pytest

from onnxopt.errors import SpecError
from onnxopt.numerics.qparams import INT8, UINT8
from onnxopt.runtime import machine
from onnxopt.runtime.target import (
    ALIASES,
    ANY,
    ARM,
    ARM64,
    GROUPS,
    NATIVE,
    TARGETS,
    X86,
    X86_AVX2,
    X86_AVX512_VNNI,
    fast_counts,
    find_target,
)


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


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        X86_AVX2.saturates = False  # type: ignore[misc]  # what is tested


def test_only_avx2_and_avx512_without_vnni_saturate() -> None:
    assert {t.name for t in (*X86, *ARM) if t.saturates} == {"x86-64-avx2", "x86-64-avx512"}


def test_newer_levels_have_what_older_ones_have() -> None:
    has = {t.name: set(t.instructions) for t in (*X86, *ARM)}
    for older, newer in (
        *(("x86-64-sse42", "x86-64-avx"), ("x86-64-avx", "x86-64-avx2"), ("x86-64-avx2", "x86-64-avx2vnni")),
        *(("x86-64-avx2", "x86-64-avx512"), ("x86-64-avx512", "x86-64-avx512vnni")),
        *(("arm64-cortex-a53", "arm64-cortex-a55"), ("arm64-cortex-a76", "arm64-neoverse-v1")),
        ("arm64-neoverse-v1", "arm64-neoverse-n2"),
    ):
        assert has[older] < has[newer]
    assert has["arm64-cortex-a53"] == has["arm64-cortex-a72"]
    assert has["arm64-cortex-a55"] == has["arm64-cortex-a76"] == has["arm64-neoverse-n1"]


def test_instructions_are_those_that_the_system_tells() -> None:
    assert {i for t in (*X86, *ARM) for i in t.instructions} <= set(machine._INSTRUCTIONS)


def test_float_blocks_are_as_wide_as_the_registers() -> None:
    assert {t.channel_step for t in X86 if "avx512f" in t.instructions} == {16}
    assert {t.channel_step for t in (*X86, *ARM) if "avx512f" not in t.instructions} == {8}
    assert all(t.float16 == ("asimdhp" in t.instructions) for t in ARM)


def test_groups_and_aliases_name_what_there_is() -> None:
    named = [t for members in GROUPS.values() for t in members]
    assert all(TARGETS[t.name] is t for t in named)
    assert {t.name for t in GROUPS["all"]} == set(TARGETS) - {ANY.name, ARM64.name}
    assert set(ALIASES.values()) <= set(TARGETS)
    assert not set(ALIASES) & set(TARGETS)
    assert len(TARGETS) == len({t.name for t in TARGETS.values()})
    assert {find_target(alias).name for alias in ALIASES} == set(ALIASES.values())


def test_one_of_each_kind_of_arm_is_in_its_group() -> None:
    assert {t.instructions for t in ARM} - {t.instructions for t in GROUPS["arm64"]} == {
        TARGETS["arm64-neoverse-n2"].instructions
    }
