"""Weights in files beside the model: found, confined to where they may lie, checked and mapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx

from onnxopt.errors import ExternalDataError
from onnxopt.graph.ir import Constant
from onnxopt.graph.proto import keep_remarks, without
from onnxopt.graph.signature import Array
from onnxopt.graph.stored import MappedFile, Stored, tensor_bytes

Nodes: TypeAlias = Sequence[onnx.NodeProto]


def map_weights(
    proto: onnx.ModelProto, folder: Path, root: Path | None
) -> tuple[dict[str, tuple[Stored, onnx.TensorProto]], tuple[MappedFile, ...]]:
    """Map the files that the tensors of a message name, and give each constant a key instead of a place.

    Files must lie in ``folder``, or anywhere under ``root`` if that is given. What cannot become a constant (tensors in
    other attributes, in functions, sparse ones) is read into the message. Raises ExternalDataError.
    """
    weights: dict[str, tuple[Stored, onnx.TensorProto]] = {}
    files: dict[Path, MappedFile] = {}
    for tensor in _external(inner_tensors(proto)):
        tensor.raw_data = _mapped(tensor, folder, root, files).tobytes()
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    for tensor in _external(constant_tensors(proto.graph)):
        raw = _mapped(tensor, folder, root, files)
        described = without(tensor, "external_data", "data_location")
        key = str(len(weights))
        weights[key] = (Stored(described, raw), described)
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=key)
    return weights, tuple(files.values())


def places(proto: onnx.ModelProto, folder: Path) -> Iterator[tuple[str, Path | ExternalDataError]]:
    """Each tensor whose values lie elsewhere, and its file in the folder, or what is wrong with that."""
    for tensor in _external(chain(inner_tensors(proto), constant_tensors(proto.graph))):
        try:
            yield tensor.name, _place(tensor, folder, None)[0]
        except (ValueError, TypeError, LookupError, OverflowError) as error:  # what a damaged message leads to
            yield tensor.name, ExternalDataError(f"tensor '{tensor.name}' is damaged: {error}")
        except ExternalDataError as error:
            yield tensor.name, error


def data_files(proto: onnx.ModelProto, folder: Path) -> list[Path]:
    """The files that a model's constants name."""
    return sorted({folder / location(t) for t in _external(constant_tensors(proto.graph))})


def location(tensor: onnx.TensorProto) -> str:
    """Where a tensor says that its values are; empty if in itself."""
    return _entries(tensor).get("location", "") if tensor.data_location == onnx.TensorProto.EXTERNAL else ""


def point(tensor: onnx.TensorProto, constant: Constant, name: str, offset: int) -> None:
    """Say in the message in which file, and where in it, the values lie."""
    del tensor.external_data[:]
    keep_remarks(tensor, constant)
    for key, value in (("location", name), ("offset", str(offset)), ("length", str(constant.nbytes))):
        tensor.external_data.add(key=key, value=value)


def constant_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and the values of Constant nodes, bodies included: what becomes a constant of the model."""
    return _constants(graph.node, graph.initializer)


def inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All other tensors of a model: in other attributes, in functions, in training graphs, parts of sparse ones."""
    yield from _others(proto.graph.node, proto.graph.sparse_initializer)
    for function in proto.functions:
        yield from chain(_constants(function.node), _others(function.node))
    for info in proto.training_info:
        for graph in (info.initialization, info.algorithm):
            yield from chain(_constants(graph.node, graph.initializer), _others(graph.node, graph.sparse_initializer))


def _constants(nodes: Nodes, initializers: Iterable[onnx.TensorProto] = ()) -> Iterator[onnx.TensorProto]:
    yield from initializers
    for node, attribute in _attributes(nodes):
        if node.op_type == "Constant" and attribute.HasField("t"):
            yield attribute.t
    for body in _bodies(nodes):
        yield from _constants(body.node, body.initializer)


def _others(nodes: Nodes, sparse: Iterable[onnx.SparseTensorProto] = ()) -> Iterator[onnx.TensorProto]:
    for node, attribute in _attributes(nodes):
        if node.op_type != "Constant" and attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            sparse = chain(sparse, [attribute.sparse_tensor])
        sparse = chain(sparse, attribute.sparse_tensors)
    for one in sparse:
        yield one.values
        yield one.indices
    for body in _bodies(nodes):
        yield from _others(body.node, body.sparse_initializer)


def _attributes(nodes: Nodes) -> Iterator[tuple[onnx.NodeProto, onnx.AttributeProto]]:
    return ((node, attribute) for node in nodes for attribute in node.attribute)


def _bodies(nodes: Nodes) -> Iterator[onnx.GraphProto]:
    for _, attribute in _attributes(nodes):
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _external(tensors: Iterable[onnx.TensorProto]) -> Iterator[onnx.TensorProto]:
    return (t for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL)


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {e.key: e.value for e in tensor.external_data}


def _mapped(tensor: onnx.TensorProto, folder: Path, root: Path | None, files: dict[Path, MappedFile]) -> Array:
    """The bytes of one tensor, viewed in its mapped file."""
    path, offset, length = _place(tensor, folder, root)
    if not length:
        return np.zeros(0, np.uint8)
    if path not in files:
        files[path] = MappedFile(path)
    return files[path].bytes[offset : offset + length]


def _place(tensor: onnx.TensorProto, folder: Path, root: Path | None) -> tuple[Path, int, int]:
    """The file, the offset and the length of one tensor's bytes."""
    entries = _entries(tensor)
    path = _confined(tensor.name, entries.get("location", ""), folder, root)
    size = path.stat().st_size
    if any(d < 0 for d in tensor.dims):
        raise ExternalDataError(f"tensor '{tensor.name}' has the shape {list(tensor.dims)}; export the model again")
    expected = tensor_bytes(tensor.data_type, tuple(tensor.dims))
    offset, length = _number(tensor, entries, "offset", 0), _number(tensor, entries, "length", expected)
    if length != expected or offset + length > size:
        raise ExternalDataError(
            f"tensor '{tensor.name}' needs {expected} bytes, but the model names {length} bytes at offset {offset} "
            f"of {path.name}, which has {size}: the file is cut off or belongs to another model"
        )
    return path, offset, length


def _number(tensor: onnx.TensorProto, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not text.isdecimal() or len(text) > 18:
        raise ExternalDataError(f"tensor '{tensor.name}' names the {key} '{text[:40]}', which is no size in bytes")
    return int(text)


def _confined(tensor: str, place: str, folder: Path, root: Path | None) -> Path:
    """The file that a tensor names, if it is a plain file where it may be. Links are followed before judging."""
    where = f"tensor '{tensor}' keeps its data in '{place}'"
    if not place or "\0" in place:
        raise ExternalDataError(f"tensor '{tensor}' names no data file; export the model again")
    try:
        path = (folder / place).resolve()
        there = path.is_file()
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, links in a circle
        raise ExternalDataError(f"tensor '{tensor}' names the data file '{place[:80]}', which cannot be") from None
    leaves = root is None and (Path(place).is_absolute() or ".." in Path(place).parts)
    allowed = folder if root is None else root
    if leaves or not path.is_relative_to(allowed.resolve()):
        raise ExternalDataError(f"{where}, outside {allowed}: move it there, or name its folder: --allow-external-root")
    if not there:
        raise ExternalDataError(f"{where}, which is not there: put the file beside the model")
    return path
