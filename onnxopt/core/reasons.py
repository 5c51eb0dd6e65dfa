"""What a pass would do, in the words of all passes: codes of the reasons for leaving a place alone, and refusals."""

from __future__ import annotations

import re
from collections.abc import Iterable

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Pass, Preflight, Skip
from onnxopt.graph.model import Model

# Samples that are looked at beforehand, or batches where the graph fixes them.
FEW = 8
# What a reason is called, by what its sentence says: the codes stay when the sentences are worded anew.
_CODES = (
    ("stored", r"weights (are )?stored as"),
    ("not-repaired", r"^not repaired|rounded to nearest: it"),
    ("channels", r"its channels stay"),
    ("quantized", r"(quantized|integers|of a layer) already|is quantized|it holds integers"),
    ("excluded", r"^(ex|in)clude|^\w+=false$"),
    ("ends", r"first or last layer"),
    ("in-body", r"in the body of|what its bodies"),
    ("dynamic-only", r"dynamic scales only"),
    ("slower", r"slower in integers|hardly gains|not quicker|no float16 arithmetic|as fast, |multiplications|be timed"),
    ("attributes", r"no integer kernel for \w+=|^there is no integer kernel|looks up columns|transposes its"),
    ("attributes", r"convolves in|more than one position|pads automatically|its type is|handles sequences"),
    ("attributes", r"first factor|no multiple of|no two sides"),
    ("no-kernel", r"no (integer|float16) kernel|static scales$|no form of few bits|ONNX has no|nothing is known"),
    ("no-kernel", r"crashes when|reads the bits of"),
    ("opset", r"opset"),
    ("boundary", r"is an output of|the default of an input|the model's caller"),
    ("shared", r"shares? its|are shared|read as float by"),
    ("size", r"unknown size|is empty|too many to solve"),
    ("small", r"is (too )?small(: | to gain)"),
    ("no-gain", r"saves? nothing|as many zeros|no rank (that )?suits|met without it|is worth|too few channels"),
    ("values", r"NaN|as large as|is zero on all|never computed|float16 (ends|loses|would|makes)|too coarse|bits hold"),
    ("weights-at-run-time", r"weights (are computed at run time|that are not constant)"),
    ("bias", r"its bias is|\ba bias that"),
    ("recurrent", r"is an? (LSTM|GRU|RNN)$"),
    ("weights", r"its (weights|table) (are|is|have)|has weights"),
    ("type", r"not float32|of unknown type"),
    ("constant", r"inputs are constant"),
    ("padding", r"it pads with|count what it pads"),
    ("refused", r"ONNX Runtime|^left float as a whole"),
    ("answers", r"answers' sake|of the energy|lose its bits"),
)
# Of what a cheap run tells, what the whole one will tell too.
_FIGURES = ("weight_bytes", "zstd_bytes")


def code(why: str) -> str:
    """What a reason for leaving a node alone is called; ``other`` for one that has no name."""
    return next((name for name, pattern in _CODES if re.search(pattern, why)), "other")


def coded(skips: Iterable[Skip]) -> tuple[tuple[str, str, str], ...]:
    """Skips as a preflight tells them: with the code of the reason before each."""
    return tuple((code(s.why), s.node, s.why) for s in skips)


def mostly(skips: Iterable[Skip]) -> str:
    """The most common reason, behind a colon."""
    whys = [s.why for s in skips]
    return f": {max(whys, key=whys.count)}" if whys else ": it has none"


def refused(why: str, skips: Iterable[Skip] = ()) -> Preflight:
    """Nothing would be gained."""
    return Preflight(0, coded(skips), refusal=why)


def tried(step: Pass, model: Model, context: Context, nothing: str) -> Preflight:
    """What a pass does to a copy of the model with a few samples: for one that is quick about it, perhaps with options
    that change how well it does, not where. ``nothing`` says that no place would change."""
    dataset = context.dataset
    few = dataset.subset(range(min(FEW * dataset.unit, dataset.count)))
    result = step.run(model.clone(), context.over(few))
    if not result.changed:
        return refused(f"{nothing}{mostly(result.skips)}", result.skips)
    figures = {name: result.figures[name] for name in _FIGURES if name in result.figures}
    return Preflight(result.changed, coded(result.skips), figures)
