"""A report as JSON that any parser takes, and back.

Numbers that JSON does not have become text that both ``float()`` and JavaScript's ``Number()`` read: "Infinity",
"-Infinity", "NaN". What could not be told is null. Keys always come in the same order.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import DataError
from onnxopt.report.advice import Advice
from onnxopt.report.difference import Difference
from onnxopt.report.execution import Execution
from onnxopt.report.files import write_text
from onnxopt.report.inspection import Inspection
from onnxopt.report.report import SCHEMA, Report, StepReport
from onnxopt.report.survey import DryRun, Ranking

_NOT_IN_JSON = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def to_json(report: Report) -> dict[str, Any]:
    """The report as values that ``json.dumps(..., allow_nan=False)`` takes."""
    content = {"schema": SCHEMA, **plain(report)}
    order = "schema verdict versions machine input output passes validation targets layers gates notes reproduce"
    return {key: content[key] for key in order.split()}


def from_json(content: Mapping[str, Any]) -> Report:
    """The report that ``to_json`` made this of. Raises DataError for anything else."""
    if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
        raise DataError(f"this is no report of this version of onnxopt: its schema is not '{SCHEMA}'")
    try:
        return typing.cast(Report, _build(Report, content))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the report is damaged: {type(error).__name__} at {error}") from None


def read_json(path: str | Path) -> Report:
    """A report from a file. Raises DataError when there is none in it."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the report {path}: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{path} is not JSON") from None
    return from_json(content)


def write_json(report: Report, path: str | Path) -> None:
    """Write a report, all or nothing. Raises OutputError where that cannot be done."""
    _write(to_json(report), Path(path))


def write_inspection(inspection: Inspection, path: str | Path) -> None:
    """Write what ``onnxopt inspect`` found, all or nothing. Raises OutputError where that cannot be done."""
    _write({"schema": SCHEMA.replace("report", "inspection"), **plain(inspection)}, Path(path))


def write_advice(advice: Advice, path: str | Path) -> None:
    """Write what ``onnxopt inspect --advise`` found, all or nothing. Raises OutputError where that cannot be done."""
    content = plain(advice)
    for row, offer in zip(content["offers"], advice.offers, strict=True):
        row["verdict"] = offer.verdict
    for step, tried in zip(content["passes"], advice.passes, strict=True):
        step["verdict"] = tried.verdict
        step["skips"] = [{"node": node, "why": why} for node, why in step["skips"]]
    _write({"schema": SCHEMA.replace("report", "advice"), **content}, Path(path))


def write_execution(execution: Execution, path: str | Path) -> None:
    """Write what ``onnxopt audit`` found, all or nothing. Raises OutputError where that cannot be done."""
    _write({"schema": SCHEMA.replace("report", "audit"), **plain(execution)}, Path(path))


def write_difference(found: Difference, path: str | Path) -> None:
    """Write what ``onnxopt diff`` found, all or nothing. Raises OutputError where that cannot be done."""
    _write({"schema": SCHEMA.replace("report", "diff"), **plain(found)}, Path(path))


def write_ranking(ranking: Ranking, path: str | Path) -> None:
    """Write what ``onnxopt sensitivity`` found, all or nothing. Raises OutputError where that cannot be done."""
    _write({"schema": SCHEMA.replace("report", "sensitivity"), **plain(ranking)}, Path(path))


def write_dry_run(found: DryRun, path: str | Path) -> None:
    """Write what a dry run tells, all or nothing. Raises OutputError where that cannot be done."""
    content = plain(found)
    for step in content["passes"]:
        step["skips"] = [dict(zip(("code", "node", "why"), skip, strict=True)) for skip in step["skips"]]
    _write({"schema": SCHEMA.replace("report", "dry-run"), **content}, Path(path))


def write_values(schema: str, value: Any, path: str | Path) -> None:
    """Write any dataclass under a schema's name, all or nothing. Raises OutputError where that cannot be done."""
    _write({"schema": schema, **plain(value)}, Path(path))


def _write(content: Mapping[str, Any], path: Path) -> None:
    write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def plain(value: Any) -> Any:
    """Dataclasses, tuples and numpy values as what JSON has."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return next(name for name, number in _NOT_IN_JSON.items() if number == value or math.isnan(number))
    if isinstance(value, StepReport):
        skips = [{"node": node, "why": why} for node, why in value.skips]
        return {**_fields(value), "skips": skips}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _build(kind: Any, value: Any) -> Any:
    """The opposite of ``plain``, guided by the types of the fields."""
    if isinstance(kind, types.UnionType):
        return None if value is None else _build(typing.get_args(kind)[0], value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        given = {name: _build(hint, value[name]) for name, hint in hints.items() if name in value}
        return typing.cast(Any, kind)(**given)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, Mapping):  # a skip
            value = list(value.values())
        return tuple(_build(typing.get_args(kind)[0], v) for v in value)
    if kind is float:
        return float(value)
    if isinstance(value, str) and kind is Any:
        return _NOT_IN_JSON.get(value, value)
    if isinstance(value, list):
        return [_build(Any, v) for v in value]
    if isinstance(value, Mapping):
        return {k: _build(Any, v) for k, v in value.items()}
    return value
