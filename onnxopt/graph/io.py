"""Load and save: external data mapped and confined to its folder, writes all or nothing."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnxopt.errors import ModelError, OutputError
from onnxopt.graph import external
from onnxopt.graph import proto as protos
from onnxopt.graph.ir import Constant
from onnxopt.graph.model import EMBED_LIMIT_BYTES, Model
from onnxopt.graph.stored import Sparse, Stored

MIN_OPSET = 7
# Keys of the remarks that a saved model carries begin so.
REMARK = "onnxopt."
# External tensors start on pages, as ONNX recommends, so that a reader can map them.
_ALIGN = 4096
_SMALL_BYTES = 1024
_CHUNK_BYTES = 64 * 2**20
_LARGEST_INPUT = 2**40
_LARGEST_MESSAGE = 2**31 - 1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def load(path: str | Path, external_root: str | Path | None = None) -> Model:
    """Read a model; the file is never changed.

    External data must lie in the model's own folder, or under ``external_root`` if that is given.
    Raises ModelError or ExternalDataError with one line that says what is wrong and what to do.
    """
    path = Path(path)
    proto = parse(path)
    root = Path(external_root) if external_root is not None else None
    try:
        weights, mapped = external.map_weights(proto, path.parent, root)
        model = Model.from_proto(proto, weights, path, mapped)
        _check_supported(model, path)
    except (ValueError, TypeError, LookupError, OverflowError) as error:  # what a damaged message leads to
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:150]
        raise ModelError(f"{path} is damaged ({reason}); copy or export it again") from error
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

    def __init__(self, folder: Path, target: Path, left_over: Sequence[Path] = ()) -> None:
        self.path = folder / target.name
        self.target = target
        self._left_over = left_over

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
        """Move the files to where they belong.

        The weights go first, under a name that is new there: at every moment the target is whole.
        """
        try:
            if self.target.exists():
                shutil.copymode(self.target, self.path)
            for file in self.files:
                os.replace(file, self.target.parent / file.name)
        except OSError as error:
            raise _unwritable(self.target, error) from error
        for data in self._left_over:
            data.unlink(missing_ok=True)


@contextmanager
def staged(model: Model, path: str | Path) -> Iterator[Staging]:
    """Write a model into a scratch folder beside its target; the folder is gone afterwards, whatever happens.

    A target that is a link is followed.
    """
    target = Path(path).resolve()
    try:
        folder = Path(tempfile.mkdtemp(prefix=".onnxopt-", dir=target.parent or "."))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        try:
            _write(model, folder / target.name, _free_data_name(target))
        except OSError as error:
            raise _unwritable(target, error) from error
        yield Staging(folder, target, _left_over(model, target))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_data_name(target: Path) -> str:
    """A name for the weights beside a model that no file has yet: what is there may be read by this or other models."""
    names = chain([f"{target.name}.data"], (f"{target.name}.{n}.data" for n in count(1)))
    return next(name for name in names if not target.with_name(name).exists())


def _left_over(model: Model, target: Path) -> list[Path]:
    """The weights that the model at the target uses alone, and nobody once it is replaced.

    Only files named after the target; of those that the model in memory reads, only what onnxopt wrote.
    """
    if not target.is_file():
        return []
    try:
        replaced = parse(target)
    except ModelError:
        return []
    ours = any(p.key.startswith(REMARK) for p in replaced.metadata_props)
    read = {file.path for file in model.mapped}
    files = (p.resolve() for p in external.data_files(replaced, target.parent))
    own = re.compile(re.escape(target.name) + r"(\.\d+)?\.data")
    return [p for p in files if p.parent == target.parent and own.fullmatch(p.name) and (ours or p not in read)]


def _unwritable(target: Path, error: OSError) -> OutputError:
    remedy = "free some space there, or " if error.errno in _NO_ROOM else ""
    return OutputError(f"cannot write {target}: {error.strerror}; {remedy}choose another place")


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(path: Path) -> list[Path]:
    """The model file and the files of weights that it names."""
    return [path, *external.data_files(parse(path), path.parent)]


def parse(path: Path) -> onnx.ModelProto:
    """The message in a file, without external data. Raises ModelError where there is none."""
    try:
        if path.stat().st_size > _LARGEST_MESSAGE:
            raise ModelError(f"{path} is over 2 GB, which no reader of ONNX takes: keep its weights as external data")
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
    for spec in model.inputs:
        if math.prod(d for d in spec.shape or () if isinstance(d, int)) > _LARGEST_INPUT:
            raise ModelError(f"the input {spec} in {path} is larger than any memory: export the model again")
    read = 0
    for constant in model.constants():
        if constant.dtype.name.startswith(("float", "bfloat")) and constant.nbytes and _has_nan(constant):
            raise ModelError(f"the weights '{constant.name}' in {path} contain NaN: such a model cannot work")
        read += constant.nbytes
        if read > _CHUNK_BYTES:
            model.release()
            read = 0
    model.release()


def _has_nan(constant: Constant) -> bool:
    # min() carries NaN through without a temporary; read through load() so that nothing stays in memory.
    values = constant._values
    array = values.load() if isinstance(values, Stored | Sparse) else np.asarray(values)
    if not array.size:
        return False
    return bool(np.isnan(array.min()) if np.issubdtype(array.dtype, np.floating) else np.isnan(array).any())


def _write(model: Model, path: Path, data_name: str) -> None:
    if not model.mapped and model.constant_bytes() < EMBED_LIMIT_BYTES:
        path.write_bytes(model.to_proto().SerializeToString())
        return
    proto, weights = model.structure()
    data = path.with_name(data_name)
    with data.open("wb") as file:
        for tensor in list(external.constant_tensors(proto.graph)):
            key = external.location(tensor)
            if not key:
                continue
            constant = weights[key]
            if constant.nbytes < _SMALL_BYTES or constant.dtype == object:
                tensor.CopyFrom(protos.embed(constant))
                continue
            file.seek(-(-file.tell() // _ALIGN) * _ALIGN)
            external.point(tensor, constant, data_name, file.tell())
            content = protos.raw_bytes(constant)
            for start in range(0, len(content), _CHUNK_BYTES):
                file.write(content[start : start + _CHUNK_BYTES])
                model.release()
    if not data.stat().st_size:
        data.unlink()
    path.write_bytes(proto.SerializeToString())
