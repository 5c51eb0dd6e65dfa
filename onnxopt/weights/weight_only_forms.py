"""How weights of few bits are stored, and by which operators they are read.

qdq    DequantizeLinear before the layer, standard ONNX. Of one before a MatMul, ONNX Runtime makes MatMulNBits when
       it loads; one before a Conv it runs every time.
nbits  ONNX Runtime's own MatMulNBits, and GatherBlockQuantized for tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
import onnx

from onnxopt.core.pass_ import label
from onnxopt.graph.ir import Constant, Graph, Node, Tensor, Variable, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.graph.stored import Stored
from onnxopt.numerics.blocks import Coded, Format
from onnxopt.weights.weight_only import Site

Form = Literal["qdq", "nbits"]
DOMAIN = "com.microsoft"
_FLOAT = np.dtype(np.float32)
# MatMulNBits takes powers of two from 16 on; one scale for a whole row is repeated this often.
_LEAST_BLOCK, _ROW_BLOCK = 16, 128


def oldest_opset(site: Site, chosen: Form, form: Format, block: int) -> int:
    """The opset that a site needs."""
    if site.kind == "table" or chosen == "nbits":
        return 0
    return 13 if form.bits == 8 and not site.block(block) else 21


def takes(site: Site, form: Format, block: int) -> bool:
    """Can ONNX Runtime's own operator read a table so?"""
    return site.kind == "product" or (site.kind == "table" and site.inputs * form.bits % 8 == 0 and block != 8)


@dataclass
class Writer:
    """Of one coding, for all that read it. ``level`` is MatMulNBits' accuracy level: 4 rounds what the layer reads to
    8 bits as well, 0 does not."""

    model: Model
    form: Format
    level: int
    coded: Coded
    made: dict[str, list[Tensor]] = field(default_factory=dict)

    def write(self, site: Site, chosen: Form, tied: bool) -> None:
        """Let the node read the integers. ``tied``: a table that a product reads too, in the same form."""
        coded = self.coded
        site.node.name = site.node.name or self.model.fresh_name(f"{site.node.op}_{label(site.node)}")
        if site.kind == "conv":
            site.node.inputs[1] = self._convolution(site, coded)
        elif site.kind == "table":
            (self._lookup if chosen == "nbits" else self._rows)(site, coded, *([tied] if chosen == "nbits" else []))
        elif chosen == "nbits":
            self._nbits(site, coded)
        else:
            self._product(site, coded)

    def _product(self, site: Site, coded: Coded) -> None:
        node = site.node
        node.inputs[1] = self._dequantized(site, coded)
        if node.op == "Gemm":
            addend = _addend(self.model, node)
            node.op, node.attrs, node.inputs = "MatMul", {}, node.inputs[:2]
            self._add(site.graph, node, addend)

    def _dequantized(self, site: Site, coded: Coded) -> Variable:
        """(inputs, outputs), made by a DequantizeLinear that the runtime joins with a MatMul."""
        per_row = coded.blocks.count == 1

        def make() -> list[Tensor]:
            turn = (lambda p: p.reshape(-1)) if per_row else (lambda p: np.ascontiguousarray(p.T))
            return [
                self._integers(site, np.ascontiguousarray(coded.steps.T)),
                *self._grid(site, turn(coded.grid.scale), turn(coded.grid.zero)),
            ]

        tensors = self._once("columns", make)
        attrs = {"axis": 1} if per_row else {"axis": 0, "block_size": _width(coded)}
        return self._dequantize(site, tensors, attrs, coded.steps.T.shape)

    def _convolution(self, site: Site, coded: Coded) -> Variable:
        shape = site.weight.shape
        count = coded.blocks.count // site.kernel

        def make() -> list[Tensor]:
            turn = (-1,) if coded.blocks.count == 1 else (shape[0], count, *shape[2:])
            return [
                self._integers(site, coded.steps.reshape(shape)),
                *self._grid(site, coded.grid.scale.reshape(turn), coded.grid.zero.reshape(turn)),
            ]

        tensors = self._once("kernel", make)
        attrs = {"axis": 0} if coded.blocks.count == 1 else {"axis": 1, "block_size": _width(coded)}
        return self._dequantize(site, tensors, attrs, shape)

    def _dequantize(self, site: Site, tensors: list[Tensor], attrs: dict[str, Any], shape: Any) -> Variable:
        made = Variable(self.model.fresh_name(f"{site.weight.name}_floats"), _FLOAT, list(shape))
        name = self.model.fresh_name(f"{site.node.name}_weight")
        site.graph.nodes.append(Node("DequantizeLinear", name, tensors, [made], attrs))
        return made

    def _nbits(self, site: Site, coded: Coded) -> None:
        node, (rows, columns) = site.node, coded.steps.shape
        addend = _addend(self.model, node)
        q, scale, zero, block = self._packed(site, coded)
        attrs = {"K": columns, "N": rows, "bits": self.form.bits, "block_size": block, "accuracy_level": self.level}
        inputs = [node.inputs[0], q, scale, *zero]
        late = addend
        if addend is not None and is_constant(addend) and addend.shape == (rows,):
            inputs += [Variable.empty() for _ in range(5 - len(inputs))]
            inputs.append(addend)
            late = None
        node.op, node.domain, node.attrs, node.inputs = "MatMulNBits", DOMAIN, attrs, inputs
        self._import()
        self._add(site.graph, node, late)

    def _packed(self, site: Site, coded: Coded) -> tuple[Tensor, Tensor, list[Tensor], int]:
        """Integers (rows, blocks, bytes), scales, zero points if there are any, and the size of a block."""
        rows, columns = coded.steps.shape
        block = _width(coded) if coded.blocks.count > 1 else min(_ROW_BLOCK, _power_of_two(columns))
        count = -(-columns // block)

        def make() -> list[Tensor]:
            scale, zero = (np.repeat(p, count, axis=1) if p.shape[1] < count else p for p in coded.grid)
            steps = np.repeat(zero, block, axis=1)
            steps[:, :columns] = coded.steps
            stored = self._bytes(steps).reshape(rows, count, -1)
            zeros = [] if self.form.symmetric else [self._named(site, "zero_point", self._bytes(zero).reshape(-1))]
            return [self._named(site, "quantized", stored), self._named(site, "scale", scale.reshape(-1)), *zeros]

        q, scale, *zero = self._once("blocks", make)
        return q, scale, zero, block

    def _lookup(self, site: Site, coded: Coded, tied: bool) -> None:
        node, columns = site.node, coded.steps.shape[1]
        block = _width(coded) if coded.blocks.count > 1 else max(_LEAST_BLOCK, _power_of_two(columns, up=True))
        attrs: dict[str, Any] = {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": self.form.bits}
        rank = _rank(node.inputs[1])
        if tied and rank is not None and columns % block == 0 and coded.blocks.count > 1:
            q, _, _, _ = self._packed(site, coded)
            wide = [self._named(site, "table_scale", coded.grid.scale[..., None])]
            if not self.form.symmetric:
                wide.append(self._named(site, "table_zero_point", self._bytes(coded.grid.zero[..., None])))
            whole, node.outputs = node.outputs[0], [Variable(self.model.fresh_name(f"{label(node)}_blocks"), _FLOAT)]
            shape = self.model.constant(f"{node.name}_shape", np.array([0] * rank + [-1], np.int64))
            name = self.model.fresh_name(f"{node.name}_Reshape")
            site.graph.nodes.append(Node("Reshape", name, [node.outputs[0], shape], [whole]))
            attrs["quantize_axis"] = 2
            tensors = [q, *wide]
        else:
            tensors = self._once("table", lambda: self._table(site, coded))
        node.op, node.domain, node.attrs = "GatherBlockQuantized", DOMAIN, attrs
        node.inputs = [tensors[0], node.inputs[1], *tensors[1:]]
        self._import()

    def _table(self, site: Site, coded: Coded) -> list[Tensor]:
        zeros = [] if self.form.symmetric else [self._named(site, "zero_point", self._bytes(coded.grid.zero))]
        quantized = self._named(site, "quantized", self._bytes(coded.steps))
        return [quantized, self._named(site, "scale", coded.grid.scale), *zeros]

    def _rows(self, site: Site, coded: Coded) -> None:
        """Rows of 8-bit integers, and their scales, are looked up and multiplied: ONNX gathers no fewer bits."""
        graph, node, y = site.graph, site.node, site.node.outputs[0]
        q, scale = self._once(
            "rows",
            lambda: [self._named(site, "quantized", coded.steps), self._named(site, "scale", coded.grid.scale)],
        )
        indices = node.inputs[1]
        node.inputs, node.attrs = [q, indices], {"axis": 0}
        node.outputs = [Variable(self.model.fresh_name(f"{y.name}_integers"), np.dtype(np.int8))]
        scales = self._node(graph, "Gather", [scale, indices], f"{y.name}_scale", axis=0)
        floats = self._node(graph, "Cast", list(node.outputs), f"{y.name}_floats", to=onnx.TensorProto.FLOAT)
        graph.nodes.append(Node("Mul", self.model.fresh_name(f"{node.name}_Mul"), [floats, scales], [y]))

    def _add(self, graph: Graph, node: Node, addend: Tensor | None) -> None:
        if addend is None:
            return
        y = node.outputs[0]
        node.outputs = [Variable(self.model.fresh_name(f"{y.name}_product"), _FLOAT)]
        graph.nodes.append(Node("Add", self.model.fresh_name(f"{node.name}_Add"), [node.outputs[0], addend], [y]))

    def _node(self, graph: Graph, op: str, inputs: list[Tensor], stem: str, **attrs: object) -> Variable:
        made = Variable(self.model.fresh_name(stem), _FLOAT)
        graph.nodes.append(Node(op, self.model.fresh_name(f"{stem}_{op}"), inputs, [made], dict(attrs)))
        return made

    def _grid(self, site: Site, scale: Array, zero: Array) -> list[Tensor]:
        scales = self._named(site, "scale", scale)
        return [scales] if self.form.symmetric else [scales, self._integers(site, zero, "zero_point")]

    def _integers(self, site: Site, steps: Array, what: str = "quantized") -> Constant:
        """A tensor of ONNX's own type: signed without zero points, unsigned with them."""
        if self.form.bits == 8:
            return self._named(site, what, steps if self.form.symmetric else self._unsigned(steps))
        kind = onnx.TensorProto.INT4 if self.form.symmetric else onnx.TensorProto.UINT4
        flat = steps.reshape(-1) if self.form.symmetric else self._unsigned(steps).reshape(-1)
        flat = np.append(flat, flat[:0].dtype.type(0)) if flat.size % 2 else flat
        tensor = onnx.TensorProto(data_type=kind, dims=steps.shape, raw_data=_pairs(flat).tobytes())
        return Constant(self.model.fresh_name(f"{site.weight.name}_{what}"), Stored(tensor))

    def _bytes(self, steps: Array) -> Array:
        """Unsigned integers, of 4 bits two in a byte along the last axis, the first one low."""
        unsigned = self._unsigned(steps)
        if self.form.bits == 8:
            return unsigned
        if unsigned.shape[-1] % 2:
            unsigned = np.concatenate((unsigned, np.zeros((*unsigned.shape[:-1], 1), np.uint8)), axis=-1)
        return _pairs(unsigned)

    def _unsigned(self, steps: Array) -> Array:
        return np.asarray(steps.astype(np.uint8) + np.uint8(-self.form.lowest), np.uint8)  # the sum may go round

    def _named(self, site: Site, what: str, values: Array) -> Constant:
        return self.model.constant(f"{site.weight.name}_{what}", np.ascontiguousarray(values))

    def _once(self, layout: str, make: Any) -> list[Tensor]:
        """What is stored in one layout, made when it is first asked for."""
        if layout not in self.made:
            self.made[layout] = make()
        return self.made[layout]

    def _import(self) -> None:
        if not self.model.opset_of(DOMAIN):
            self.model.header.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def _pairs(unsigned: Array) -> Array:
    found = unsigned[..., 1::2].astype(np.uint8) << 4
    found |= unsigned[..., ::2].astype(np.uint8) & 15
    return np.asarray(found, np.uint8)


def _width(coded: Coded) -> int:
    """How many inputs share a scale: a kernel's first position tells."""
    return int((coded.blocks.of == 0).sum())


def _power_of_two(size: int, *, up: bool = False) -> int:
    """The largest power of two up to ``size``, or the smallest from it on; at least 16."""
    bits = (size - 1).bit_length() if up else size.bit_length() - 1
    return max(_LEAST_BLOCK, 1 << max(bits, 0))


def _rank(tensor: Tensor) -> int | None:
    return None if tensor.shape is None else len(tensor.shape)


def _addend(model: Model, node: Node) -> Tensor | None:
    """What a Gemm adds, of a constant one number per output where it can be."""
    beta = node.attrs.get("beta", 1.0)
    if node.op != "Gemm" or len(node.inputs) < 3 or node.inputs[2].is_empty() or beta == 0:
        return None
    addend: Tensor = node.inputs[2]
    if not is_constant(addend):
        return addend
    values = np.asarray(addend.values * np.float32(beta))
    values = values.reshape(-1) if values.ndim == 2 and values.shape[0] == 1 else values
    return addend if beta == 1 and values.shape == addend.shape else model.constant(addend.name, values)


def stored_bytes(site: Site, chosen: Form, form: Format, block: int) -> int:
    """Bytes of the integers with their scales and zero points. MatMulNBits fills up the last block of each row."""
    columns = stored = site.inputs * site.kernel
    count = site.blocks(block).count
    if site.kind == "product" and chosen == "nbits":
        width = block if count > 1 else min(_ROW_BLOCK, _power_of_two(columns))
        count = -(-columns // width)
        stored = count * width
    bits = stored * form.bits + count * (32 + (0 if form.symmetric else form.bits))
    return prod(site.weight.shape) // columns * bits // 8
