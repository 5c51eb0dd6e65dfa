"""In which form and how many bits each site's weights are stored, and where that cannot be or saves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

from onnxopt.core.pass_ import label
from onnxopt.graph.model import Model
from onnxopt.numerics.blocks import Format
from onnxopt.runtime.target import Target
from onnxopt.weights import weight_only
from onnxopt.weights.weight_only import Site
from onnxopt.weights.weight_only_forms import Form, oldest_opset, stored_bytes, takes

_NARROW = 32
# Rows of tables where ONNX's own operators look them up.
_ROWS = Format(8, symmetric=True)
_ACROSS = "bodies share its weights, and ONNX Runtime cannot load those behind DequantizeLinear; form=nbits can be"


class Chosen(NamedTuple):
    """A site and the form that its weights get: integers of a ``format``, so many inputs to a scale."""

    site: Site
    form: Form
    format: Format
    block: int

    @property
    def bytes(self) -> tuple[int, int]:
        """Of its weights, as float32 and as they are stored then."""
        return prod(self.site.weight.shape) * 4, stored_bytes(self.site, self.form, self.format, self.block)


@dataclass(frozen=True)
class Coding:
    """What is wanted: weights of a ``format``, ``block`` inputs to a scale (0: all), read by whose operators."""

    format: Format
    block: int
    form: Literal["auto", "qdq", "nbits"]
    target: Target

    @property
    def level(self) -> int:
        """4 where there are kernels that multiply integers of 8 bits with such of 4: on ARM they need its dot
        product."""
        without = self.target.architecture == "arm64" and self.target.instructions
        return 0 if without and "asimddp" not in self.target.instructions else 4

    def oldest_opset(self, model: Model, left_out: Mapping[str, str]) -> int:
        """The opset that its sites need."""
        sites, _ = weight_only.find(model, left_out)
        return max((oldest_opset(s, self._form(s), self.format, self.block) for s in sites), default=0)

    def choose(self, model: Model, left_out: Mapping[str, str]) -> tuple[list[Chosen], dict[str, str]]:
        """Whose weights are coded, and how; and what is left alone, by label, with the reason. What is left alone reads
        floats, which may take others with it."""
        out = dict(left_out)
        while True:
            sites, left = weight_only.find(model, out)
            across = {id(s.node) for s in weight_only.across_graphs(sites)}
            chosen = [self._chosen(s, id(s.node) in across) for s in sites]
            faults = {label(c.site.node): self._fault(c, model.opset, id(c.site.node) in across) for c in chosen}
            if not any(faults.values()):
                return chosen, left
            out |= {name: why for name, why in faults.items() if why}

    def _chosen(self, site: Site, across: bool) -> Chosen:
        form: Form = "nbits" if across and self.form == "auto" else self._form(site)
        by_rows = site.kind == "table" and form == "qdq"
        return Chosen(site, form, *((_ROWS, 0) if by_rows else (self.format, self.block)))

    def _form(self, site: Site) -> Form:
        """The runtime makes MatMulNBits of a DequantizeLinear itself, of accuracy level 4, and repeats the scale of a
        row; so whole rows are smaller in that form, if the target takes that level. Narrow ones it does not join."""
        if site.kind == "conv" or self.form == "qdq" or not takes(site, self.format, self.block):
            return "qdq"
        whole_rows = site.kind == "product" and not self.block and site.inputs >= _NARROW
        return "qdq" if self.form == "auto" and whole_rows and self.level == 4 else "nbits"

    def _fault(self, chosen: Chosen, opset: int, across: bool) -> str:
        """Why a form is not to be had, or not worth it; empty if it is."""
        if oldest_opset(chosen.site, chosen.form, self.format, self.block) > opset:
            return "its form needs a newer opset than the model could be given"
        if chosen.form == "qdq" and across:
            return _ACROSS
        now, then = chosen.bytes
        return f"it would save nothing: {now} bytes now, {then} then" if then >= now else ""
