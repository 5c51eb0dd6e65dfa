"""A model in memory: the graph as an edit buffer, and all that the edit buffer cannot carry."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from onnxopt.errors import ModelError
from onnxopt.graph import proto as protos
from onnxopt.graph.exporter import Exporter
from onnxopt.graph.importer import Importer, Weights
from onnxopt.graph.ir import Constant, Graph, Node, Variable, constants_of, remove_dead, toposort
from onnxopt.graph.signature import Array, TensorSpec
from onnxopt.graph.stored import MappedFile, Sparse

# Constants up to this many elements stay in a skeleton: shapes, axes, sizes, which decide other tensors' shapes.
_SKELETON_ELEMENTS = 1024
# Protobuf's limit on a message, less room for all but the weights.
EMBED_LIMIT_BYTES = 2**31 - 2**24
_COLLECT_BYTES = 2**28
_LONGEST_STEM = 80
# Since then Resize has attributes for where it samples; ONNX's converter leaves out what older ones did.
_RESIZE_OPSET = 11
_OLD_RESIZE = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


class Model:
    """The one mutable thing. ``graph`` is the main graph; ``header`` the ModelProto around it, without a graph.

    ``path`` is the file it was loaded from, if any; ``mapped`` are the weight files that its constants view.
    """

    def __init__(
        self, graph: Graph, header: onnx.ModelProto, names: set[str], path: Path | None, mapped: tuple[MappedFile, ...]
    ) -> None:
        self.graph = graph
        self.header = header
        self.path = path
        self.mapped = mapped
        self._names = names
        self._numbers: dict[str, int] = {}  # by stem, where to go on looking for a fresh name
        self._new_bytes = 0

    @classmethod
    def from_proto(
        cls,
        proto: onnx.ModelProto,
        weights: Weights | None = None,
        path: Path | None = None,
        mapped: tuple[MappedFile, ...] = (),
    ) -> Model:
        """Build the edit buffer. ``weights`` gives constants stored elsewhere than in the message, by key.

        Raises ModelError where the graph is not whole: a tensor nobody makes, a name made twice, a cycle.
        """
        if not proto.HasField("graph"):
            raise ModelError("the file holds no graph: is it an ONNX model?")
        header = protos.without(proto, "graph")
        importer = Importer(weights or {}, initializers_are_inputs=proto.ir_version < 4)
        graph = importer.graph(proto.graph)
        model = cls(graph, header, importer.names, path, mapped)
        if stuck := toposort(graph):
            raise ModelError(f"the graph has a cycle through node '{stuck[0].name}' ({stuck[0].op}); export it again")
        return model

    def to_proto(self) -> onnx.ModelProto:
        """The whole model as one message. Raises ModelError above protobuf's limit of 2 GB."""
        if self.constant_bytes() > EMBED_LIMIT_BYTES:
            raise ModelError("the weights are over 2 GB: save the model with external data instead")
        return self._assemble(Exporter(protos.embed))

    def structure(self) -> tuple[onnx.ModelProto, dict[str, Constant]]:
        """The model without its weights, which are given beside it by key: ``from_proto`` takes both back."""
        aside: dict[str, Constant] = {}

        def set_aside(constant: Constant) -> onnx.TensorProto:
            key = str(len(aside))
            aside[key] = constant
            return protos.reference(constant, key)

        return self._assemble(Exporter(set_aside)), aside

    def skeleton(self) -> onnx.ModelProto:
        """The model with each large constant of the main graph replaced by an input of its type and shape.

        What ONNX's own checker, shape inference and version converter get to see: small, whatever the weights are.
        """
        large: list[onnx.ValueInfoProto] = []
        inputs = {t.name for t in self.graph.inputs}

        def split(constant: Constant) -> onnx.TensorProto | None:
            if _size(constant) <= _SKELETON_ELEMENTS and not isinstance(constant._values, Sparse):
                return protos.embed(constant)
            if constant.name not in inputs:
                large.append(protos.value_info(constant))
            return None

        exporter = Exporter(split)
        proto = self._assemble(exporter, list_initializers=False)
        listed = {value.name for value in proto.graph.input}  # inputs with a large default are there already
        proto.graph.input.extend(value for value in large if value.name not in listed)
        proto.ir_version = max(proto.ir_version, 4)
        return proto

    def _assemble(self, exporter: Exporter, list_initializers: bool = True) -> onnx.ModelProto:
        proto = protos.without(self.header)
        proto.graph.CopyFrom(exporter.graph(self.graph, list_initializers and proto.ir_version < 4))
        return proto

    def clone(self) -> Model:
        """An independent copy that shares the arrays."""
        proto, weights = self.structure()
        return Model.from_proto(proto, {k: (c._values, c.origin) for k, c in weights.items()}, self.path, self.mapped)

    def graphs(self) -> Iterator[Graph]:
        """The main graph, then every body, outermost first."""
        stack = [self.graph]
        while stack:
            graph = stack.pop()
            yield graph
            stack += [body for node in graph.nodes for body in node.bodies()]

    def nodes(self) -> Iterator[Node]:
        """Every node, those in bodies included."""
        for graph in self.graphs():
            yield from graph.nodes

    def constants(self) -> list[Constant]:
        """Every constant once, in the order of first use."""
        found: dict[int, Constant] = {}
        for graph in self.graphs():
            for constant in constants_of(graph):
                found.setdefault(id(constant), constant)
        return list(found.values())

    def variables(self) -> dict[str, Variable]:
        """Every tensor that is not constant, by name (names are unique over all bodies)."""
        found: dict[str, Variable] = {}
        for graph in self.graphs():
            for tensor in (*graph.inputs, *(t for n in graph.nodes for t in n.outputs), *graph.outputs):
                if isinstance(tensor, Variable) and not tensor.is_empty():
                    found[tensor.name] = tensor
        return found

    def constant_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(c.nbytes for c in self.constants())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What must be fed: the graph's inputs, without those that have a default."""
        return tuple(_spec(t) for t in self.graph.inputs if t.name not in self.graph.defaults)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What comes out."""
        return tuple(_spec(t) for t in self.graph.outputs)

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators (0 if the model imports none)."""
        return self.opset_of("")

    def opset_of(self, domain: str) -> int:
        """The version of an operator domain that the model imports, or 0."""
        wanted = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
        return next((o.version for o in self.header.opset_import if o.domain in wanted), 0)

    def fresh_name(self, stem: str) -> str:
        """A tensor or node name that nothing in the model has yet: the stem itself, or the stem and a number.

        Long stems lose their middle: some converters join the names of all they fused, and would outweigh the weights.
        """
        if len(stem) > _LONGEST_STEM:
            stem = f"{stem[: _LONGEST_STEM // 2 - 1]}..{stem[1 - _LONGEST_STEM // 2 :]}"
        name, n = stem, self._numbers.get(stem, 0)
        while name in self._names:
            n += 1
            name = f"{stem}_{n}"
        self._names.add(name)
        self._numbers[stem] = n
        return name

    def constant(self, stem: str, values: Array) -> Constant:
        """A new constant with a fresh name."""
        result = Constant(self.fresh_name(stem), np.asarray(values))
        self._new_bytes += result.nbytes
        return result

    def tidy(self) -> int:
        """Drop nodes without effect and unread constants, and put the rest in order; returns how many nodes went."""
        removed = remove_dead(self.graph)
        toposort(self.graph)
        for graph in self.graphs():
            graph.constants = [c for c in graph.constants if c.outputs or any(c is t for t in graph.outputs)]
        return removed

    def release(self) -> None:
        """Give back to the system the pages of mapped weight files, and constants that were replaced."""
        for file in self.mapped:
            file.release()
        if self._new_bytes > _COLLECT_BYTES:
            # Tensors and their lists of nodes refer to one another: only the collector frees them.
            gc.collect()
            self._new_bytes = 0

    def upgrade(self, opset: int) -> bool:
        """Convert the standard operators upward to ``opset``; returns whether anything was to do.

        Raises ModelError when ONNX's version converter cannot, naming its reason; the model is then as before.
        """
        before = self.opset
        if before >= opset:
            return False
        skeleton = self.skeleton()
        own_inputs = {t.name for t in self.graph.inputs}
        try:
            converted = onnx.version_converter.convert_version(skeleton, opset)
        except Exception as error:  # the converter raises RuntimeError, ConvertError and bare C++ exceptions
            reason = str(error).strip().splitlines()[-1][-200:] if str(error).strip() else type(error).__name__
            raise ModelError(f"cannot convert the model from opset {before} to {opset}: {reason}") from error
        for value in [v for v in converted.graph.input if v.name not in own_inputs]:
            converted.graph.input.remove(value)
        weights = {c.name: c for c in self.constants()}
        protos.restore_metadata(converted.graph, skeleton.graph)
        known = {t.name for t in converted.graph.initializer}
        produced = {name for n in converted.graph.node for name in n.output}
        for name, constant in weights.items():
            if name not in known and name not in produced:
                converted.graph.initializer.append(protos.reference(constant, name))
        header = protos.without(self.header, "opset_import")
        header.opset_import.extend(o for o in self.header.opset_import if o.domain not in ("", "ai.onnx"))
        header.opset_import.append(onnx.helper.make_opsetid("", opset))
        header.ir_version = max(header.ir_version, onnx.helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", opset), 4), 4)
        whole = protos.without(header)
        whole.graph.CopyFrom(converted.graph)
        fresh = Model.from_proto(whole, {k: (c._values, c.origin) for k, c in weights.items()}, self.path, self.mapped)
        if before < _RESIZE_OPSET <= opset:
            for node in fresh.nodes():
                if node.op == "Resize" and node.is_standard:
                    node.attrs |= _OLD_RESIZE
        self.adopt(fresh)
        return True

    def adopt(self, other: Model) -> None:
        """Become what ``other`` is, which must not be used any more: a pass can work on a clone and take it or not."""
        self.graph, self.header, self._names = other.graph, other.header, other._names

    def digest(self) -> str:
        """SHA-256 of all that the model computes with: its structure and the bytes of its weights."""
        proto, weights = self.structure()
        result = hashlib.sha256(proto.SerializeToString(deterministic=True))
        for constant in weights.values():
            result.update(protos.raw_bytes(constant))
            self.release()
        return result.hexdigest()


def _size(constant: Constant) -> int:
    return int(np.prod(constant.shape, dtype=np.int64))


def _spec(tensor: Variable | Constant) -> TensorSpec:
    shape = tensor.shape
    dtype = tensor.dtype if tensor.dtype is not None else np.dtype(object)
    return TensorSpec(tensor.name, np.dtype(dtype), None if shape is None else tuple(shape))
