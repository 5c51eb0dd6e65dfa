"""The results as Markdown: a summary, then one table for each model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from texts import percent, table, versions

Row = Mapping[str, Any]
# A candidate counts as fully integer if it quantizes this much of the weights that the most thorough tool does.
THOROUGH = 0.9
# One that takes longer than the float model by more than this has paid for its accuracy with what it was made for.
USABLE = 0.5


def document(results: Mapping[str, Any]) -> str:
    """All of docs/quantization-benchmark.md."""
    rows, machine = results["rows"], results["machine"]
    parts = [
        _INTRODUCTION,
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {', '.join(machine['instructions'])}. "
        f"Scored with onnxruntime {results['versions']['onnxruntime']}, one thread, batch 1.",
        "## Summary",
        _SUMMARY,
        summary(rows),
        "## Versions",
        versions(rows),
    ]
    for model in dict.fromkeys(r["model"] for r in rows):
        parts += [f"## {model}", one_model([r for r in rows if r["model"] == model])]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """# Quantization, side by side

Made by `python benchmarks/quant/run.py`: every tool gets the same models, the same calibration samples and one thread,
and is judged by one scorer on other samples. Times below 1.3 apart, and seconds of a tool, are rough."""
_SUMMARY = f"""- *works*: models of which a file came out that runs.
- *contest*: of these, how many take part in what follows: they quantize at least {THOROUGH:.0%} of the weights that the
  most thorough tool does, and take at most {1 / USABLE:.0f} times the float model's time.
- *best*: how often its SQNR is the highest; *within 0.5 dB*: how often it is no further from the highest.
- *gap*: mean of its SQNR less the highest of all other tools (rows of one tool are not each other's rivals), in dB.
- *behind onnxopt*: mean of onnxopt's SQNR less its SQNR, in dB, over the models where both take part.
- *speed*: geometric mean of the time of the float model over that of the candidate; *slower*: how often under 0.97."""


def summary(rows: Sequence[Row]) -> str:
    """One line for each tool, over all models."""
    tools = list(dict.fromkeys(r["tool"] for r in rows))
    full = {(r["model"], r["tool"]): r["sqnr_db"] for r in contest(rows)}
    lines = []
    for tool in tools:
        own = [r for r in rows if r["tool"] == tool]
        gaps = [gap for model, name in full if name == tool for gap in _gap(full, model, tool)]
        ahead = [full[m, "onnxopt"] - v for (m, t), v in full.items() if t == tool and (m, "onnxopt") in full]
        speeds = [r["speed"] for r in own if r.get("speed")]
        lines.append(
            [
                tool,
                f"{sum('sqnr_db' in r for r in own)} of {len(own)}",
                str(sum(name == tool for _, name in full)),
                str(sum(v == _best(full, m) for (m, t), v in full.items() if t == tool)),
                str(sum(v >= _best(full, m) - 0.5 for (m, t), v in full.items() if t == tool)),
                _mean(gaps),
                _mean(ahead),
                f"{math.exp(sum(map(math.log, speeds)) / len(speeds)):.2f}" if speeds else "",
                str(sum(s < 0.97 for s in speeds)) if speeds else "",
            ]
        )
    head = ("tool", "works", "contest", "best", "within 0.5 dB", "gap", "behind onnxopt", "speed", "slower")
    return table(head, lines)


def contest(rows: Iterable[Row]) -> list[Row]:
    """The candidates that leave hardly more weights float than the most thorough tool's, and are not far slower."""
    good = [r for r in rows if "sqnr_db" in r and not math.isnan(r["sqnr_db"]) and r.get("speed", 1) >= USABLE]
    most: dict[str, float] = {}
    for row in good:
        most[row["model"]] = max(most.get(row["model"], 0.0), row["quantized_share"] or 0.0)
    return [r for r in good if (r["quantized_share"] or 0.0) >= THOROUGH * most[r["model"]] > 0]


def one_model(rows: Sequence[Row]) -> str:
    """One line for each tool; what failed says why."""
    lines = []
    counted = {r["tool"] for r in contest(rows)}
    for row in rows:
        spent = [f"{row['seconds']:.1f}" if "seconds" in row else "", _megabytes(row)]
        if "sqnr_db" not in row:
            why = str(row.get("error", "")).replace("|", "/")
            lines.append([row["tool"], f"fails: {why}", *[""] * 6, *spent])
            continue
        name = row["tool"] if row["tool"] in counted else f"({row['tool']})"
        lines.append(
            [
                name,
                f"{row['sqnr_db']:.1f}",
                percent(row["agreement"]),
                percent(row["accuracy"]),
                percent(row["integer_share"], 0),
                str(row["conversions"]),
                f"{row['speed']:.2f}" if "speed" in row else "",
                percent(row["bytes"] / row["bytes_float"], 0),
                *spent,
            ]
        )
    float_accuracy = next((r["accuracy_float"] for r in rows if r.get("accuracy_float") is not None), None)
    accuracy = "accuracy" if float_accuracy is None else f"accuracy (float {percent(float_accuracy)})"
    head = ("tool", "SQNR, dB", "agreement", accuracy, "integer MACs", "conversions", "speed", "size", "s", "MB")
    note = (
        ""
        if len(counted) == len(rows)
        else "\n\nIn brackets: leaves more weights float than others do, or is far slower than the float model."
    )
    return table(head, lines) + note


def _gap(full: Mapping[tuple[str, str], float], model: str, tool: str) -> list[float]:
    """One number, or none where no other tool takes part."""
    others = [v for (m, t), v in full.items() if m == model and t.split()[0] != tool.split()[0]]
    return [full[model, tool] - max(others)] if others else []


def _best(full: Mapping[tuple[str, str], float], model: str) -> float:
    return max(v for (m, _), v in full.items() if m == model)


def _mean(values: Sequence[float]) -> str:
    finite = [v for v in values if math.isfinite(v)]
    return f"{sum(finite) / len(finite):+.1f}" if finite else ""


def _megabytes(row: Row) -> str:
    return f"{row['peak_bytes'] / 1e6:.0f}" if row.get("peak_bytes") else ""
