"""What a model must hold to: a TOML file with a table for each check."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from onnxopt.deploy.keys import (
    flag,
    integer,
    integers,
    key,
    named,
    number,
    path,
    preset,
    read_table,
    share,
    size,
    source,
    spelled,
    texts,
    word,
    words,
)
from onnxopt.errors import SpecError
from onnxopt.runtime.releases import parse_version
from onnxopt.runtime.target import find_target
from onnxopt.spelling import nearest
from onnxopt.targets.spec import PROVIDERS, one_target, parse_targets

# In the order in which they run.
NAMES = (
    *("structure", "external-data", "opset", "operators", "size", "provenance"),
    *("saturation", "audit", "edges", "determinism", "memory", "latency", "accuracy", "targets"),
)
_LARGEST_POLICY = 2**20


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Which checks are wanted."""

    only: tuple[str, ...] = key((), words(NAMES), "these checks and no others")
    skip: tuple[str, ...] = key((), words(NAMES), "all checks but these")
    not_run: str = key("show", word("show", "fail"), "whether a wanted check that could not be run fails the model")


@dataclass(frozen=True, kw_only=True)
class Opset:
    """The runtime version of the device."""

    ort: str | None = key(None, named(parse_version), "the ONNX Runtime release on the device, such as 1.16")


@dataclass(frozen=True, kw_only=True)
class Operators:
    """What must be able to run every node."""

    providers: tuple[str, ...] = key(
        ("cpu",), words(("cpu", *PROVIDERS)), "execution providers, each of which must run all nodes"
    )
    forbid: tuple[str, ...] = key((), texts, "operators that must not occur, such as Loop or com.microsoft:Gelu")


@dataclass(frozen=True, kw_only=True)
class Size:
    """The file with its external data."""

    max: int | None = key(None, size, "most bytes, such as 1.5MB")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What loading and running adds to a process."""

    max: int | None = key(None, size, "most bytes at the peak, such as 64MB")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long one sample takes."""

    max_ms: float | None = key(None, number(), "most milliseconds, the median of runs")
    threads: int = key(1, integer(1, 256), "threads of the session")
    target: str = key("native", named(one_target), "where it is timed: native or ssh://...")


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Answers against labels and against the float model."""

    data: str | None = key(None, source, "samples: .npz, .npy, a folder, or synthetic")
    preprocess: str | None = key(None, preset, "how images become feeds: a preset's name or a .toml file")
    samples: int | None = key(None, integer(1, 10**9), "at most so many samples")
    reference: Path | None = key(None, path, "the float model")
    min_agreement: float | None = key(None, share, "least share of equal top-1 answers")
    max_drop: float | None = key(None, share, "most accuracy that may be lost")
    min_accuracy: float | None = key(None, share, "least accuracy")
    min_sqnr: float | None = key(None, number(-1000, 1000), "least signal to noise of the outputs, in dB")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Processors that must give the same answers."""

    run: str | None = key(
        None, named(parse_targets), "targets to run on, such as x86,arm64; those that are not available are told"
    )
    require: str | None = key(None, named(parse_targets), "targets that must be available")


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """Sums that overflow 16 bits on some x86 processors."""

    target: str | None = key(None, named(find_target), "the processor that the model ships to; none: any")


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Inputs at the edge of what there is."""

    batches: tuple[int, ...] = key((1, 3), integers(1, 4096), "batch sizes, where the graph leaves the batch free")
    largest: int | None = key(None, integer(1, 2**20), "a size of free dimensions that must run; none: 64 is tried")


@dataclass(frozen=True, kw_only=True)
class Determinism:
    """Equal answers each time."""

    threads: tuple[int, ...] = key((1, 2), integers(1, 256), "numbers of threads that must agree")
    repeats: int = key(3, integer(1, 1000), "runs with each")


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What executes in integers."""

    min_integer_share: float | None = key(None, share, "least share of the MACs in integer kernels")
    rules: str = key("native", word("native", "arm"), "how integer kernels are chosen")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the model comes from."""

    required: bool = key(False, flag, "the model must carry onnxopt's remarks, or be named by an accepted report")
    accepted: Path | None = key(None, path, "the report (JSON) that accepted this very file")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One table for each check, and which of them are wanted. The default demands what needs no further information."""

    checks: Checks = field(default_factory=Checks)
    opset: Opset = field(default_factory=Opset)
    operators: Operators = field(default_factory=Operators)
    size: Size = field(default_factory=Size)
    memory: Memory = field(default_factory=Memory)
    latency: Latency = field(default_factory=Latency)
    accuracy: Accuracy = field(default_factory=Accuracy)
    targets: Targets = field(default_factory=Targets)
    saturation: Saturation = field(default_factory=Saturation)
    edges: Edges = field(default_factory=Edges)
    determinism: Determinism = field(default_factory=Determinism)
    audit: Audit = field(default_factory=Audit)
    provenance: Provenance = field(default_factory=Provenance)

    def wanted(self, name: str) -> bool:
        """Is this check to be run?"""
        return name not in self.checks.skip and (not self.checks.only or name in self.checks.only)

    def with_tables(self, content: Mapping[str, Any], folder: Path) -> Policy:
        """This policy with other values where tables, as TOML has them, give some. Raises SpecError."""
        names = {spelled(f): f.name for f in fields(self)}
        tables = {}
        for name, table in content.items():
            if name not in names:
                raise SpecError(f"there is no table [{name}]{nearest(name, names)}")
            tables[names[name]] = read_table(getattr(self, names[name]), table, name, folder)
        return replace(self, **tables)


def read_policy(file: str | Path) -> Policy:
    """A policy from a file; paths in it are relative to its folder.

    Raises SpecError for a file that cannot be read, unknown tables and keys, wrong types and ranges.
    """
    file = Path(file)
    try:
        if file.stat().st_size > _LARGEST_POLICY:
            raise SpecError(f"{file} is too large for a policy")
        content = tomllib.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        raise SpecError(f"cannot read the policy {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"the policy {file} is not TOML: {error}") from None
    try:
        return Policy().with_tables(content, file.parent)
    except SpecError as error:
        raise SpecError(f"{file}: {error}") from None
