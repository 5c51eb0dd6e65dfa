"""Weights that stay where they are until they are read: in the parsed file, or mapped from a file beside it."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from onnxopt.graph.signature import Array

# Types of which one byte holds several values, and their bits; by name, since older onnx lacks some.
_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_RELEASE = getattr(mmap, "MADV_DONTNEED", None)


class MappedFile:
    """A file of weights, mapped read-only. ``release`` gives its pages back to the system; they return when read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes: Array = np.memmap(path, np.uint8, "r")

    def release(self) -> None:
        """Drop the pages read so far from this process's memory."""
        if _RELEASE is not None:
            self.bytes._mmap.madvise(_RELEASE)  # type: ignore[attr-defined]  # numpy's memmap keeps its mmap here


class Stored(gs.ir.tensor.LazyValues):  # type: ignore[misc]  # graphsurgeon is untyped
    """The values of one TensorProto, not read yet.

    ``tensor`` describes them; ``raw`` holds their bytes when they lie in a mapped file, else ``tensor`` does itself.
    """

    def __init__(self, tensor: onnx.TensorProto, raw: Array | None = None) -> None:
        self.tensor = tensor
        self.raw = raw
        self.shape = tuple(tensor.dims)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        self.nbytes = tensor_bytes(tensor.data_type, self.shape)

    def load(self) -> Array:
        """The values: a view into the mapped file where the type allows, otherwise a fresh array."""
        if self.raw is None:
            return np.asarray(numpy_helper.to_array(self.tensor)).reshape(self.shape)
        if is_packed(self.tensor.data_type):
            whole = onnx.TensorProto()
            whole.CopyFrom(self.tensor)
            whole.raw_data = self.raw.tobytes()
            return np.asarray(numpy_helper.to_array(whole)).reshape(self.shape)
        return np.asarray(self.raw.view(self.dtype).reshape(self.shape))


class Sparse(gs.ir.tensor.LazyValues):  # type: ignore[misc]  # graphsurgeon is untyped
    """A sparse initializer: dense when read, sparse again when written unread."""

    def __init__(self, tensor: onnx.SparseTensorProto) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.dims)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.values.data_type)
        self.nbytes = tensor_bytes(tensor.values.data_type, self.shape)

    def load(self) -> Array:
        """The values as a dense array."""
        dense: Array = np.zeros(self.shape, self.dtype)
        values, indices = numpy_helper.to_array(self.tensor.values), numpy_helper.to_array(self.tensor.indices)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return dense


def is_packed(data_type: int) -> bool:
    """Does the type keep several values in one byte (int4, uint4, int2, ...)?"""
    return _bits(data_type) < 8


def tensor_bytes(data_type: int, shape: tuple[int, ...]) -> int:
    """Bytes that ONNX stores for a tensor of this type and shape (strings count as nothing)."""
    if data_type == onnx.TensorProto.STRING:
        return 0
    return (math.prod(shape) * _bits(data_type) + 7) // 8


def _bits(data_type: int) -> int:
    packed = _PACKED.get(onnx.TensorProto.DataType.Name(data_type))
    return packed or onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize * 8
