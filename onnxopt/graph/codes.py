"""Weights stored as codes: numbers of levels, several to a byte, and the nodes that make floats of them.

    bytes (uint8) -> Cast -> Gather from digits -> Cast -> Reshape -> Add -> Gather from levels -> Mul by scale

With L levels a byte holds the k digits of a number to base L, L^k <= 256: eight of 2 levels, five of 3, four of 4,
three of up to 6, two of up to 16. ``digits`` (L^k, k) lists them, and is shared by all weights. Add stands there where
channels have levels of their own: it leads to those. No operator is newer than operator set 7, and all of them read
constants only: a runtime that folds constants does so once, when it loads. From operator set 21 on there is uint4: two
in a byte need no digits then, as one in a byte does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxopt.graph.ir import Constant, Node, Tensor, Variable, replace_uses
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.graph.stored import Stored

OLDEST_OPSET, _UINT4_OPSET = 7, 21
_MOST = 256
_SLICE_INPUTS = 10
# Bytes of a node in a file with its small constants, without the weight's name, and how often they hold that name.
_NODE_BYTES, _NAMED = 85, 5.5
# Names that some exporters write are longer than small weights are.
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Coded:
    """A weight as ``levels[book, codes] * scale``: codes (the weight's shape) from 0, levels (books, L), L at most 256;
    ``scale`` and ``book`` broadcast to the weight's shape. None: 1, and one book, of levels (L,)."""

    codes: npt.NDArray[np.uint8]
    levels: Array
    scale: Array | None = None
    book: npt.NDArray[np.integer[Any]] | None = None

    @property
    def count(self) -> int:
        """How many levels each book has."""
        return int(self.levels.shape[-1])

    @property
    def values(self) -> Array:
        """What the weight is, in the type of the levels."""
        found = self.levels[self.codes] if self.book is None else self.levels[self.book, self.codes]
        return np.asarray(found if self.scale is None else found * self.scale)

    def nbytes(self, name: str) -> int:
        """Bytes at most that it takes in a file, nodes included, without what all weights share."""
        count = per_byte(self.count)
        nodes = 2 + (self.scale is not None) + (self.book is not None)
        nodes += 0 if count == 1 else 3 + 2 * (self.codes.size % count > 0)
        each = _NODE_BYTES + _NAMED * len(_short(name))
        first = 0 if self.book is None else 4 * self.book.size
        return -(-self.codes.size // count) + self._numbers + first + round(nodes * each)

    def of(self, levels: int) -> Coded:
        """The same with so many levels, of which those beyond its own stand for no weight."""
        more = [(0, 0)] * (self.levels.ndim - 1) + [(0, levels - self.count)]
        return replace(self, levels=np.pad(self.levels, more, "edge"))

    @property
    def entropy_bytes(self) -> float:
        """Bytes that no code of one symbol after the other, all by one table, goes below (Shannon's bound for these
        codes), and the levels and scales."""
        counts = np.bincount(self.codes.reshape(-1), minlength=1).astype(np.float64)
        share = counts[counts > 0] / max(1, self.codes.size)
        return self._numbers - float((share * np.log2(share)).sum()) * self.codes.size / 8

    @property
    def _numbers(self) -> int:
        return int(self.levels.nbytes + (0 if self.scale is None else self.scale.nbytes))


def per_byte(levels: int) -> int:
    """How many codes fit into a byte."""
    count = 1
    while levels > 1 and levels ** (count + 1) <= _MOST:
        count += 1
    return count


def table_bytes(levels: int) -> int:
    """Bytes of the table of digits that all weights of so many levels share."""
    count = per_byte(levels)
    return levels**count * count if count > 1 else 0


def few_tables(coded: Mapping[Constant, Coded], levels: int) -> dict[Constant, Coded]:
    """Weights of fewer than ``levels`` as if they had so many, where a table for theirs takes more than it saves."""
    found = {constant: codes.of(max(2, codes.count)) for constant, codes in coded.items()}
    for count in {codes.count for codes in found.values()} - {levels}:
        alike = {constant: codes.of(levels) for constant, codes in found.items() if codes.count == count}
        saved = sum(codes.nbytes(c.name) - found[c].nbytes(c.name) for c, codes in alike.items())
        if saved < table_bytes(count):
            found |= alike
    return found


def store(model: Model, coded: Mapping[Constant, Coded]) -> None:
    """Let every node that reads one of these constants read what is made of its codes."""
    writer = _Writer(model)
    for constant, codes in coded.items():
        replace_uses(constant, writer.expand(constant, codes))
    model.tidy()


class _Writer:
    """Writes the nodes; what several weights share is written once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._digits: dict[int, Constant] = {}

    def expand(self, constant: Constant, coded: Coded) -> Tensor:
        name, count = _short(constant.name), per_byte(coded.count)
        levels = self._model.constant(f"{name}.levels", coded.levels.reshape(-1))
        if count == 2 and self._model.opset >= _UINT4_OPSET:
            codes, count = self._uint4(f"{name}.codes", coded.codes), 1
        else:
            codes = self._model.constant(f"{name}.codes", coded.codes if count == 1 else _packed(coded, count))
        index = self._node("Cast", name, "index", [codes], np.int32, to=onnx.TensorProto.INT32)
        if count > 1:
            table = self._table(coded.count, count)
            index = self._node("Gather", name, "digits", [table, index], np.uint8)
            index = self._node("Cast", name, "number", [index], np.int32, to=onnx.TensorProto.INT32)
            if coded.codes.size % count:
                index = self._cut(name, index, coded.codes.size)
            index = self._node("Reshape", name, "shaped", [index, self._sizes(name, coded.codes.shape)], np.int32)
        if coded.book is not None:
            first = self._model.constant(f"{name}.first", (coded.book * coded.count).astype(np.int32))
            index = self._node("Add", name, "own", [index, first], np.int32)
        found = self._node("Gather", name, "level", [levels, index], coded.levels.dtype)
        if coded.scale is not None:
            scale = self._model.constant(f"{name}.scale", coded.scale)
            found = self._node("Mul", name, "scaled", [found, scale], found.dtype)
        return found

    def _uint4(self, stem: str, codes: npt.NDArray[np.uint8]) -> Constant:
        low, high = np.resize(codes, (-(-codes.size // 2), 2)).T
        raw = (low | high << 4).tobytes()
        tensor = onnx.TensorProto(data_type=onnx.TensorProto.UINT4, dims=codes.shape, raw_data=raw)
        return Constant(self._model.fresh_name(stem), Stored(tensor))

    def _table(self, levels: int, count: int) -> Constant:
        if levels not in self._digits:
            number = np.arange(levels**count)[:, None]
            table = number // levels ** np.arange(count) % levels
            self._digits[levels] = self._model.constant(f"digits_{levels}", table.astype(np.uint8))
        return self._digits[levels]

    def _cut(self, name: str, index: Tensor, size: int) -> Tensor:
        """The last byte may hold more codes than there are weights."""
        flat = self._node("Reshape", name, "flat", [index, self._sizes(name, (-1,))], np.int32)
        if self._model.opset < _SLICE_INPUTS:
            return self._node("Slice", name, "cut", [flat], np.int32, starts=[0], ends=[size])
        ends = [self._model.constant(f"{name}.{k}", np.array([v], np.int64)) for k, v in (("start", 0), ("end", size))]
        return self._node("Slice", name, "cut", [flat, *ends], np.int32)

    def _sizes(self, name: str, shape: tuple[int, ...]) -> Constant:
        return self._model.constant(f"{name}.shape", np.array(shape, np.int64))

    def _node(self, op: str, name: str, stem: str, inputs: list[Tensor], dtype: npt.DTypeLike, **attrs: Any) -> Tensor:
        made = Variable(self._model.fresh_name(f"{name}.{stem}"), np.dtype(dtype))
        self._model.graph.nodes.append(Node(op, self._model.fresh_name(f"{name}.{op}"), inputs, [made], attrs))
        return made


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "weight"


def _packed(coded: Coded, count: int) -> Array:
    """(bytes,): the first code of each in its lowest digit."""
    padded = np.zeros((-(-coded.codes.size // count), count), np.intp)
    padded.reshape(-1)[: coded.codes.size] = coded.codes.reshape(-1)
    return np.asarray((padded @ coded.count ** np.arange(count)).astype(np.uint8))
