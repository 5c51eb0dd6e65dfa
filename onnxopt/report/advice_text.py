"""What pays on which layer, for reading: tables on a terminal or in a log file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter

from rich.console import Group, RenderableType
from rich.text import Text

from onnxopt.report import words
from onnxopt.report.advice import Advice, Costs, Offer, Whole
from onnxopt.report.tables import limited, skips_table, table

_LAYERS = ("layer", "operator ", "pass ", "weights", "MACs", "time", "error", " ")
_PASSES = ("pass", "weights", "packed", "MACs", "time", "speed", "error", " ")


def render_advice(found: Advice, *, verbose: bool = False) -> RenderableType:
    """One row for each pass on each layer, what pays best first, then one for each pass on the whole model.

    ``verbose`` shows all rows and every place that is left alone; else the few rows are of each pass in turn.
    """
    offers = found.offers if verbose else _in_turn(found.offers)
    paying = [_layer(o) for o in offers if o.verdict == "pays"]
    others = [_layer(o) for o in offers if o.verdict != "pays"]
    idle = [p for p in found.passes if p.why]
    tried = [_whole(p) for p in found.passes if not p.why]
    title = "What one layer alone saves of its own, and what that does to the outputs"
    return Group(
        *([_table(title, _LAYERS, paying, verbose)] if paying else ()),
        *([_table("Does not pay", _LAYERS, others, verbose)] if others else ()),
        *([_table("The whole model", _PASSES, tried, True)] if tried else ()),
        *(Text.assemble((f"{p.spec}: ", "bold"), f"nothing to gain: {p.why}") for p in idle),
        *(skips_table(p.skips, f"left alone by {p.spec}", True) for p in found.passes if verbose and p.skips),
        *(Text.assemble(("note: ", "yellow"), note) for note in found.notes),
        Text(_total(found), "bold"),
    )


def _in_turn(offers: Sequence[Offer]) -> list[Offer]:
    """The best of each pass, then the second of each, and so on: one pass would fill a short table."""
    seen: Counter[tuple[str, bool]] = Counter()
    turns = []
    for offer in offers:
        key = offer.spec, offer.verdict == "pays"
        turns.append((seen[key], offer))
        seen[key] += 1
    return [offer for _, offer in sorted(turns, key=itemgetter(0))]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], verbose: bool) -> RenderableType:
    """Without the columns that are empty: numbers are not to be broken on a narrow terminal."""
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    shown = limited([[row[i] for i in used] for row in rows], verbose)
    return table(title, [columns[i] for i in used], shown)


def _layer(o: Offer) -> tuple[str, ...]:
    size, macs, ms = _saved(o.before, o.after)
    op = "" if o.op.lower() in o.layer.lower() else o.op
    return o.layer, op, o.spec, size, macs, ms if o.pace else "", words.decibels(o.sqnr_db), o.verdict


def _saved(before: Costs, after: Costs) -> tuple[str, str, str]:
    return (
        _change(before.bytes, after.bytes, words.size(abs(before.bytes - after.bytes))),
        _change(before.macs, after.macs, words.count(abs((before.macs or 0) - (after.macs or 0)))),
        _change(before.ms, after.ms, _time(abs((before.ms or 0.0) - (after.ms or 0.0)))),
    )


def _time(ms: float) -> str:
    return words.milliseconds(ms) if ms >= 1 else words.milliseconds(1e3 * ms).replace("ms", "us")


def _change(before: float | None, after: float | None, amount: str) -> str:
    """``-1.18 MB``; empty where nothing changes, ``?`` where it is not known."""
    if before is None or after is None:
        return "?"
    return "" if before == after else f"{'-' if after < before else '+'}{amount}"


def _whole(p: Whole) -> tuple[str, ...]:
    assert p.before is not None
    assert p.after is not None
    packed = _change(p.before.packed, p.after.packed, words.size(abs(p.before.packed - p.after.packed)))
    size, macs, ms = _saved(p.before, p.after)
    speed = "?" if p.speedup is None else f"{p.speedup[0]:.2f} x"
    return p.spec, size, packed, macs, ms if p.pace else "", speed, words.decibels(p.sqnr_db), p.verdict


def _total(found: Advice) -> str:
    paying = [p for p in found.passes if p.verdict == "pays"]
    names = ", ".join(p.spec for p in paying) if paying else "none"
    samples = words.many(found.samples, "sample")
    return f"on the whole model as it is, {samples} judging, it pays to run: {names}"
