"""What quantization would do, for reading: tables on a terminal or in a log file."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from onnxopt.report import words
from onnxopt.report.survey import DryRun, LayerDamage, Outlook, Ranking
from onnxopt.report.tables import skips_table, table

_COLUMNS = ("layer", "operator ", "MACs", "alone in integers", "alone float", "answers lost", "float takes")


def render_ranking(found: Ranking, *, verbose: bool = False) -> RenderableType:
    """One row a layer, the most harmful first. ``verbose`` names every layer that stays float."""
    total = f"all {len(found.layers)} in integers with static scales, unrepaired: {words.decibels(found.sqnr_db)}"
    total += f", on {words.many(found.samples, 'sample')}"
    return Group(
        table("", _COLUMNS, map(_layer, found.layers)),
        *([skips_table(found.skips, "float with static scales", verbose)] if found.skips else ()),
        *(Text.assemble(("note: ", "yellow"), note) for note in found.notes),
        Text(total, "bold"),
    )


def _layer(s: LayerDamage) -> tuple[str, ...]:
    lost = 1 - s.agreement if s.accuracy_drop is None and s.agreement is not None else s.accuracy_drop
    gain = "" if s.gain_db is None else "equal" if s.gain_db == float("inf") else f"{s.gain_db:+.1f} dB"
    took = f"{s.lost_ms:+.4f} ms"
    return s.layer, s.op, words.share(s.share), words.decibels(s.sqnr_db), gain, words.share(lost), took


def render_dry_run(found: DryRun, *, verbose: bool = False) -> RenderableType:
    """What each pass would do, and why not more. ``verbose`` names every place that would be left alone."""
    rows = [(o.spec, str(o.changed) if o.asked else "?", str(len(o.skips)), _figures(o)) for o in found.passes]
    refused = [o for o in found.passes if o.refusal]
    skips = {o.spec: [(node, f"{code}: {why}") for code, node, why in o.skips] for o in found.passes if o.skips}
    return Group(
        table("Passes", ("pass", "would change", "leave alone", "estimates "), rows),
        *(skips_table(places, f"would be left alone by {name}", verbose) for name, places in skips.items()),
        *(Text.assemble(("note: ", "yellow"), note) for note in found.notes),
        *(Text(f"nothing would be gained by {o.spec}: {o.refusal}", "bold red") for o in refused),
        *([] if refused else [Text("nothing was run or written", "bold")]),
    )


def _figures(o: Outlook) -> str:
    if not o.asked:
        return "tells only when it runs"
    parts = []
    if "integer_share" in o.figures:
        parts.append(f"{words.share(o.figures['integer_share'])} of the MACs in integers")
    if "parameters" in o.figures:
        parts.append("{} parameters instead of {}".format(*map(words.count, reversed(o.figures["parameters"]))))
    if "channels" in o.figures:
        parts.append("{1} of {0} channels".format(*o.figures["channels"]))
    if "weight_bytes" in o.figures:
        parts.append("{} of weights instead of {}".format(*map(words.size, reversed(o.figures["weight_bytes"]))))
    elif "zstd_bytes" in o.figures:
        parts.append("{} compressed instead of {}".format(*map(words.size, reversed(o.figures["zstd_bytes"]))))
    if "seconds" in o.figures:
        samples = words.many(o.figures["samples"], "sample")
        parts.append(f"about {o.figures['seconds']:g} s to calibrate on {samples}")
    if "peak_bytes" in o.figures:
        parts.append(f"{words.size(o.figures['peak_bytes'])} of memory")
    return ", ".join(parts)
