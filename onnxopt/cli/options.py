"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxopt.check.limits import parse_share, parse_size
from onnxopt.errors import SpecError
from onnxopt.runtime.target import NATIVE, TARGETS, Target, find_target
from onnxopt.targets.spec import Wanted, parse_targets

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)


class Share(click.ParamType[float]):
    """``97%`` or ``0.97``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share as a number."""
        try:
            return value if isinstance(value, float) else parse_share(value)
        except (ValueError, SpecError) as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[int]):
    """``1.5MB``, ``800kB`` or a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The size in bytes."""
        try:
            return value if isinstance(value, int) else parse_size(value)
        except (ValueError, SpecError) as error:
            self.fail(str(error), param, ctx)


class Limit(click.ParamType[float]):
    """A number; infinity too, but not NaN, to which nothing holds."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isnan(number):
            self.fail(f"'{value}' is no number", param, ctx)
        return number


class Dimension(click.ParamType[tuple[str, int]]):
    """``length=128``: the size of a free dimension."""

    name = "dimension"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """The name and the size."""
        if isinstance(value, tuple):
            return value
        name, _, size = value.rpartition("=")
        if not name or not size.isdecimal() or len(size) > 18 or int(size) < 1:
            self.fail(f"'{value[:80]}' is no dimension; write for example length=128", param, ctx)
        return name, int(size)


class TargetName(click.ParamType[Target]):
    """``x86-64-avx2``: a processor that models are made for."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Target:
        """The target."""
        try:
            return value if isinstance(value, Target) else find_target(value)
        except SpecError as error:
            self.fail(str(error), param, ctx)


class TargetList(click.ParamType[tuple[Wanted, ...]]):
    """``x86,arm64-cortex-a72,ssh://pi@kitchen``: where a model is run."""

    name = "targets"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Wanted, ...]:
        """The targets."""
        try:
            return value if isinstance(value, tuple) else parse_targets(value)
        except SpecError as error:
            self.fail(str(error), param, ctx)


def dim_option(command: F) -> F:
    """--dim"""
    option = click.option(
        "--dim", "dims", type=Dimension(), multiple=True, metavar="NAME=SIZE", help="Size of a free dimension."
    )
    return option(command)


def data_options(command: F) -> F:
    """--data, --preprocess, --samples, --seed, --dim"""
    for option in (
        dim_option,
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Seed of all chance: sampling, synthetic data.",
        ),
        click.option("--samples", type=click.IntRange(1), help="Use at most so many samples, spread over the data."),
        click.option("--preprocess", metavar="PRESET|FILE.toml", help="How images become feeds: imagenet, unit, ..."),
        click.option(
            "--data",
            metavar="SOURCE",
            help="An .npz or .npy, a folder of these or of images, module:function, or 'synthetic' (the default).",
        ),
    ):
        command = option(command)
    return command


def gate_options(command: F) -> F:
    """The gates that a result must pass."""
    for option in (
        click.option("--max-size", type=Size(), help="Largest file, such as 1.5MB."),
        click.option("--min-speedup", type=Limit(), help="Least speed over the original, such as 1.5."),
        click.option("--min-sqnr", type=Limit(), metavar="DB", help="Least signal to noise of the outputs, in dB."),
        click.option("--min-agreement", type=Share(), help="Least share of equal top-1 answers, such as 97%."),
        click.option("--max-drop", type=Share(), help="Most accuracy that may be lost, such as 1% (needs labels)."),
    ):
        command = option(command)
    return command


def target_option(command: F) -> F:
    """--target"""
    return click.option(
        "--target",
        "processor",
        type=TargetName(),
        default=NATIVE.name,
        show_default=True,
        metavar="NAME",
        help=f"What the model will run on: {', '.join(TARGETS)}.",
    )(command)


def target_options(command: F) -> F:
    """--target and --require-target of what runs a model on targets; each may be given several times."""
    for option in (
        click.option(
            "--require-target",
            "required",
            type=TargetList(),
            multiple=True,
            metavar="LIST",
            help="Run it there too; where that is not possible, end with exit code 4.",
        ),
        click.option(
            "--target",
            "targets",
            type=TargetList(),
            multiple=True,
            metavar="LIST",
            help="Run it there, such as x86,arm64 or ssh://pi@kitchen (onnxopt targets list shows them).  [default: "
            "native, x86-64-avx2, x86-64-avx512, arm64, as far as they can be run here]",
        ),
    ):
        command = option(command)
    return command


def output_options(command: F) -> F:
    """--report, --quiet, --verbose, --log-file, --allow-external-root"""
    for option in (
        click.option("--allow-external-root", type=FILE, metavar="DIR", help="Where external data may lie as well."),
        click.option("--log-file", type=FILE, help="Write progress and result there too."),
        click.option("--verbose", "-v", is_flag=True, help="Shorten nothing: every row, every skip with its reason."),
        click.option("--quiet", "-q", is_flag=True, help="No output but errors; the exit code tells."),
        click.option(
            "--report",
            type=FILE,
            metavar="FILE",
            help="Write the report as JSON; optimize and validate write a page if FILE ends in .html.",
        ),
    ):
        command = option(command)
    return command


def run_options(command: F) -> F:
    """--threads, --batch, and those of the output"""
    for option in (
        output_options,
        click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Batch size that is timed."),
        click.option(
            "--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads per session."
        ),
    ):
        command = option(command)
    return command
