"""Load and save: external data mapped and confined to its folder, writes all or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnxopt.errors import ExternalDataError, ModelError, OutputError
from onnxopt.graph import proto as protos
from onnxopt.graph.ir import Constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.graph.stored import MappedFile, Stored, tensor_bytes

MIN_OPSET = 7
# External tensors start on pages, as ONNX recommends, so that a reader can map them.
_ALIGN = 4096
_SMALL_BYTES = 1024
_CHUNK_BYTES = 64 * 2**20


def load(path: str | Path, external_root: str | Path | None = None) -> Model:
    """Read a model; the file is never changed.

    External data must lie in the model's own folder, or under ``external_root`` if that is given.
    Raises ModelError or ExternalDataError with one line that says what is wrong and what to do.
    """
    path = Path(path)
    proto = _parse(path)
    root = Path(external_root) if external_root is not None else path.parent
    weights, mapped = _external(proto, path.parent, root)
    model = Model.from_proto(proto, weights, path, mapped)
    _check_supported(model, path)
    return model


def save(model: Model, path: str | Path) -> None:
    """Write a model, all or nothing: first beside the target under another name, then renamed over it.

    Weights go into ``<name>.data`` when the model was loaded with external data or is over 2 GB.
    Raises OutputError when the folder cannot be written or the disk is full; nothing is left behind then.
    """
    with staged(model, path) as staging:
        staging.commit()


def check_writable(path: Path) -> None:
    """Raise OutputError if nothing can be written beside ``path``."""
    try:
        Path(tempfile.mkdtemp(prefix=".onnxopt-", dir=path.parent)).rmdir()
    except OSError as error:
        raise _unwritable(path, error) from error


class Staging:
    """A written model that is not at its place yet: ``path`` can be run and judged, ``commit`` moves it."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.path = folder / target.name
        self.target = target

    def annotate(self, remarks: Mapping[str, str]) -> None:
        """Write remarks into the model's metadata."""
        proto = onnx.load(self.path, load_external_data=False)
        kept = [p for p in proto.metadata_props if p.key not in remarks]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)
        for key, value in remarks.items():
            proto.metadata_props.add(key=key, value=value)
        try:
            self.path.write_bytes(proto.SerializeToString())
        except OSError as error:
            raise _unwritable(self.target, error) from error

    @property
    def files(self) -> list[Path]:
        """Everything that was written: the weights first, the model last."""
        return sorted(self.path.parent.iterdir(), key=lambda p: p.name == self.path.name)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(p.stat().st_size for p in self.files)

    def commit(self) -> None:
        """Move the files to where they belong. The weights go first: a model never waits for its weights."""
        try:
            for file in self.files:
                os.replace(file, self.target.parent / file.name)
        except OSError as error:
            raise _unwritable(self.target, error) from error


@contextmanager
def staged(model: Model, path: str | Path) -> Iterator[Staging]:
    """Write a model into a scratch folder beside its target; the folder is gone afterwards, whatever happens."""
    target = Path(path)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".onnxopt-", dir=target.parent or "."))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        try:
            _write(model, folder / target.name)
        except OSError as error:
            raise _unwritable(target, error) from error
        yield Staging(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unwritable(target: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {target}: {error.strerror}; free some space there, or choose another place")


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(path: Path) -> list[Path]:
    """The model file and the files of weights that it names."""
    locations = {_entries(t).get("location", "") for t in _tensors(_parse(path).graph) if _is_external(t)}
    return [path, *sorted(path.parent / name for name in locations)]


def _parse(path: Path) -> onnx.ModelProto:
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder; name the .onnx file in it") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError:
        raise ModelError(f"{path} is not an ONNX model, or was cut off: copy or export it again") from None
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it holds no graph or names no opset")
    return proto


def _check_supported(model: Model, path: Path) -> None:
    if 0 < model.opset < MIN_OPSET:
        raise ModelError(f"{path} uses opset {model.opset}; {MIN_OPSET} is the oldest supported: export it again")
    read = 0
    for constant in model.constants():
        if np.issubdtype(constant.dtype, np.floating) and constant.nbytes and _has_nan(constant):
            raise ModelError(f"the weights '{constant.name}' in {path} contain NaN: such a model cannot work")
        read += constant.nbytes
        if read > _CHUNK_BYTES:
            model.release()
            read = 0
    model.release()


def _has_nan(constant: Constant) -> bool:
    # min() carries NaN through without a temporary; read through load() so that nothing stays in memory.
    values = constant._values
    array = values.load() if isinstance(values, Stored) else np.asarray(values)
    return bool(array.size and np.isnan(array.min()))


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and the values of Constant nodes, bodies included: what becomes a constant of the model."""
    yield from graph.initializer
    for node, attribute in _attributes(graph.node):
        if node.op_type == "Constant" and attribute.HasField("t"):
            yield attribute.t
    for body in _bodies(graph.node):
        yield from _tensors(body)


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Tensors in other attributes, which stay inside the message."""
    nodes = list(nodes)
    for node, attribute in _attributes(nodes):
        if node.op_type != "Constant" and attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for body in _bodies(nodes):
        yield from _attribute_tensors(body.node)


def _attributes(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[onnx.NodeProto, onnx.AttributeProto]]:
    return ((node, attribute) for node in nodes for attribute in node.attribute)


def _bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for _, attribute in _attributes(nodes):
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {e.key: e.value for e in tensor.external_data}


def _external(
    proto: onnx.ModelProto, folder: Path, root: Path
) -> tuple[dict[str, tuple[Stored, onnx.TensorProto]], tuple[MappedFile, ...]]:
    """Map the files that the tensors name, and give each tensor a key instead of a place."""
    weights: dict[str, tuple[Stored, onnx.TensorProto]] = {}
    files: dict[Path, MappedFile] = {}
    for tensor in filter(_is_external, _tensors(proto.graph)):
        raw = _mapped(tensor, folder, root, files)
        described = protos.without(tensor, "external_data", "data_location")
        key = str(len(weights))
        weights[key] = (Stored(described, raw), described)
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=key)
    inner = [node for function in proto.functions for node in function.node]
    inner_tensors = (t for n, a in _attributes(inner) if n.op_type == "Constant" and a.HasField("t") for t in [a.t])
    for tensor in filter(_is_external, (*_attribute_tensors([*proto.graph.node, *inner]), *inner_tensors)):
        tensor.raw_data = _mapped(tensor, folder, root, files).tobytes()
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    return weights, tuple(files.values())


def _mapped(tensor: onnx.TensorProto, folder: Path, root: Path, files: dict[Path, MappedFile]) -> Array:
    """The bytes of one tensor, viewed in its mapped file."""
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
    if not length:
        return np.zeros(0, np.uint8)
    if path not in files:
        files[path] = MappedFile(path)
    return files[path].bytes[offset : offset + length]


def _number(tensor: onnx.TensorProto, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not text.isdecimal() or len(text) > 18:
        raise ExternalDataError(f"tensor '{tensor.name}' names the {key} '{text[:40]}', which is no size in bytes")
    return int(text)


def _confined(tensor: str, location: str, folder: Path, root: Path) -> Path:
    """The file that a tensor names, if it is a plain file inside the root. Links are followed before judging."""
    where = f"tensor '{tensor}' keeps its data in '{location}'"
    if not location or "\0" in location:
        raise ExternalDataError(f"tensor '{tensor}' names no data file; export the model again")
    path = (folder / location).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ExternalDataError(f"{where}, outside {root}: move it there, or name its folder: --allow-external-root")
    if not path.is_file():
        raise ExternalDataError(f"{where}, which is not there: put the file beside the model")
    return path


def _write(model: Model, path: Path) -> None:
    if not model.mapped and model.constant_bytes() < 2**31 - 2**20:
        path.write_bytes(model.to_proto().SerializeToString())
        return
    proto, weights = model.structure()
    data = path.with_name(path.name + ".data")
    with data.open("wb") as file:
        for tensor in filter(_is_external, _tensors(proto.graph)):
            constant = weights[_entries(tensor)["location"]]
            if constant.nbytes < _SMALL_BYTES or constant.dtype == object:
                tensor.CopyFrom(protos.embed(constant))
                continue
            file.seek(-(-file.tell() // _ALIGN) * _ALIGN)
            _point(tensor, constant, data.name, file.tell())
            content = protos.raw_bytes(constant)
            for start in range(0, len(content), _CHUNK_BYTES):
                file.write(content[start : start + _CHUNK_BYTES])
                model.release()
    path.write_bytes(proto.SerializeToString())


def _point(tensor: onnx.TensorProto, constant: Constant, location: str, offset: int) -> None:
    """Say in the message where the weights lie."""
    del tensor.external_data[:]
    protos.keep_remarks(tensor, constant)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(constant.nbytes))):
        tensor.external_data.add(key=key, value=value)
