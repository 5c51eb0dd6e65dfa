"""How two models differ, for reading: what is another on one screen, and all of it where that is wanted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from onnxopt.report import words
from onnxopt.report.difference import Difference, Field, Lone, Numbers, Pair, WeightDifference
from onnxopt.report.report import OutputQuality
from onnxopt.report.tables import limited, table


def render_difference(found: Difference, *, verbose: bool = False) -> RenderableType:
    """``verbose`` shows every node and tensor, those that are equal too."""
    parts: list[RenderableType] = [_sizes(found)]
    fields = [*found.interface, *found.header]
    if fields:
        parts.append(table("Models", ("", "first ", "second "), _fields(fields)))
    pairs = [p for p in found.pairs if verbose or _of_its_own(p)]
    if pairs:
        columns = ("node", "operator ", "MACs", "weights", "what differs ")
        parts.append(table("Nodes", columns, limited([_pair(p) for p in pairs], verbose)))
    if follows := sum(not p.same and not _of_its_own(p) for p in found.pairs):
        parts.append(Text(f"{words.many(follows, 'node')} with results of another size or type, for what comes in"))
    parts += _lone(found, verbose)
    if found.numbers is not None:
        parts += _numbers(found.numbers, verbose)
    parts += [Text.assemble(("note: ", "yellow"), _plain(note)) for note in found.notes]
    parts.append(Text(summary(found), "bold green" if found.same else "bold yellow"))
    return Group(*parts)


def summary(found: Difference) -> str:
    """One line: equal, or how much is another."""
    renamed = f"; {words.many(found.renamed, 'node')} renamed" if found.renamed else ""
    if found.same:
        return f"equal: the same graph with the same weights{renamed}"
    changed = sum(not p.same for p in found.pairs)
    weights = sum(len(p.weights) for p in found.pairs)
    counts = [f"{changed} of {words.many(len(found.pairs), 'common node')} changed"] if changed else []
    counts += [f"{words.many(weights, 'weight')} changed"] if weights else []
    counts += [f"{words.many(len(nodes), 'node')} {what}" for nodes, what in _sides(found) if nodes]
    counts += ["inputs, outputs or opsets are others"] if found.interface else []
    return f"different: {', '.join(counts)}{renamed}"


def _sides(found: Difference) -> tuple[tuple[Sequence[Lone], str], ...]:
    return (found.removed, "removed"), (found.added, "added")


def _sizes(found: Difference) -> RenderableType:
    a, b = found.sizes
    rows = [
        ("file", words.size(a.file_bytes), words.size(b.file_bytes)),
        ("nodes", str(a.nodes), str(b.nodes)),
        ("parameters", words.count(a.parameters), words.count(b.parameters)),
        ("weights", words.size(a.weight_bytes), words.size(b.weight_bytes)),
        ("MACs", words.count(a.macs), words.count(b.macs)),
    ]
    return table("", ("", _plain(Path(found.a).name), _plain(Path(found.b).name)), rows)


def _fields(fields: Sequence[Field]) -> list[tuple[str, str, str]]:
    return [(_plain(f.what), _plain(f.a) or "-", _plain(f.b) or "-") for f in fields]


def _of_its_own(p: Pair) -> bool:
    """Is more another than the size of what comes in and goes out?"""
    return bool(p.weights) or any(not f.what.startswith("output ") for f in p.fields)


def _pair(p: Pair) -> tuple[str, ...]:
    name = _plain(p.a) if p.a == p.b else f"{_plain(p.a)} → {_plain(p.b)}"
    what = [f"{_plain(f.what)}: {_plain(f.a) or '-'} → {_plain(f.b) or '-'}" for f in p.fields]
    return (
        name,
        _plain(p.op),
        _two(p.macs),
        _two(p.bytes, True),
        "\n".join([*map(_weight, p.weights), *what]) or "equal",
    )


def _weight(w: WeightDifference) -> str:
    return f"input {w.input}: {_form(w)}{_error(w)}"


def _form(w: WeightDifference) -> str:
    if w.change in ("added", "removed"):
        return f"{w.change} {w.a or w.b}"
    if w.change == "retyped":
        return f"{w.a.partition('[')[0]} → {w.b.partition('[')[0]}"
    return "changed" if w.a == w.b else f"{w.a} → {w.b}"


def _error(w: WeightDifference) -> str:
    if w.sqnr_db is None or w.max_error is None:
        return ""
    return ", same values" if w.sqnr_db == math.inf else f", {words.decibels(w.sqnr_db)}, by up to {w.max_error:.2g}"


def _two(values: tuple[int | None, int | None], size: bool = False) -> str:
    a, b = (words.size(v) if size and v is not None else words.count(v) for v in values)
    return "" if values == (0, 0) else a if a == b else f"{a} → {b}"


def _lone(found: Difference, verbose: bool) -> Iterator[RenderableType]:
    for nodes, what in _sides(found):
        if not nodes:
            continue
        if verbose:
            yield table(f"Nodes {what}", ("node", "operator "), [(_plain(n.node), _plain(n.op)) for n in nodes])
        else:
            kinds = sorted(Counter(n.op for n in nodes).items(), key=lambda item: (-item[1], item[0]))
            yield Text(f"{what}: {', '.join(f'{n} {_plain(op)}' for op, n in kinds)}")


def _numbers(numbers: Numbers, verbose: bool) -> Iterator[RenderableType]:
    columns = ("tensor", "signal to noise", "largest error")
    samples = words.many(numbers.samples, "sample")
    yield table(f"Outputs, on {samples}", columns, limited([_quality(o) for o in numbers.outputs], verbose))
    shown = list(numbers.tensors)
    if not verbose:
        shown = sorted((t for t in shown if t.sqnr_db != math.inf), key=lambda t: (t.sqnr_db, t.name))
    if shown:
        title = "Inner tensors, in order" if verbose else "Inner tensors, the worst first"
        yield table(title, columns, limited([_quality(t) for t in shown], verbose))
    if numbers.first is not None:
        yield Text(f"the first that is another: {_plain(numbers.first)}")


def _quality(o: OutputQuality) -> tuple[str, str, str]:
    last = f"{o.max_error:.3g}" if o.equal is None else f"{words.share(o.equal)} equal"
    return _plain(o.name), words.decibels(o.sqnr_db), last


def _plain(text: str) -> str:
    """Names are not to be trusted: what would steer a terminal is shown as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
