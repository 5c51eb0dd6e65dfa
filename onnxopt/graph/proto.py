"""Small conversions between ONNX messages and Python values, losing nothing."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, numpy_helper

from onnxopt.graph.ir import Constant, Tensor
from onnxopt.graph.signature import Array
from onnxopt.graph.stored import Sparse, Stored, is_packed

M = TypeVar("M", bound=Message)

# The fields of a TensorProto that hold its values.
PAYLOAD = (
    "raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data",
    "external_data", "data_location",
)  # fmt: skip

_PLAIN = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.GRAPH: "g",
    AttributeProto.GRAPHS: "graphs",
}


def without(message: M, *fields: str) -> M:
    """A copy of a message that leaves out some fields, without copying those first."""
    result = type(message)()
    for field, value in message.ListFields():
        if field.name in fields:
            continue
        if field.is_repeated:
            getattr(result, field.name).extend(value)
        elif field.message_type is not None:
            getattr(result, field.name).CopyFrom(value)
        else:
            setattr(result, field.name, value)
    return result


def reference(constant: Constant, key: str) -> onnx.TensorProto:
    """A TensorProto that says what the constant is and, instead of its values, the key to find it by."""
    result = onnx.TensorProto(name=constant.name, data_type=data_type(constant), dims=constant.shape)
    result.data_location = onnx.TensorProto.EXTERNAL
    result.external_data.add(key="location", value=key)
    return result


def embed(constant: Constant) -> onnx.TensorProto:
    """A TensorProto with the constant's values inside."""
    values: Any = constant._values
    if isinstance(values, Stored) and values.raw is None:
        result = onnx.TensorProto()
        result.CopyFrom(values.tensor)
        result.name = constant.name
        return result
    if isinstance(values, Stored):
        result = onnx.TensorProto(name=constant.name, data_type=data_type(constant), dims=constant.shape)
        result.raw_data = values.raw.tobytes()  # type: ignore[union-attr]  # raw is set: the case above took None
    else:
        result = numpy_helper.from_array(np.asarray(constant.values), constant.name)
    keep_remarks(result, constant)
    return result


def keep_remarks(tensor: onnx.TensorProto, constant: Constant) -> None:
    """Give a new TensorProto the doc string and metadata of the one that the constant came from."""
    if isinstance(constant.origin, onnx.TensorProto):
        if constant.origin.HasField("doc_string"):
            tensor.doc_string = constant.origin.doc_string
        tensor.metadata_props.extend(constant.origin.metadata_props)


def raw_bytes(constant: Constant) -> memoryview:
    """The values as ONNX lays them out in ``raw_data``, without a copy where they lie so already."""
    values: Any = constant._values
    if isinstance(values, Stored):
        if values.raw is not None:
            return values.raw.data
        if values.tensor.HasField("raw_data"):
            return memoryview(values.tensor.raw_data)
    array = np.asarray(values.load() if isinstance(values, Stored | Sparse) else values)
    if array.dtype == object:
        return memoryview(b"\0".join(s if isinstance(s, bytes) else str(s).encode() for s in array.reshape(-1)))
    if is_packed(onnx.helper.np_dtype_to_tensor_dtype(array.dtype)):
        return memoryview(numpy_helper.from_array(array).raw_data)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def data_type(tensor: Tensor) -> int:
    """ONNX's number for the tensor's element type."""
    values = getattr(tensor, "_values", None)
    if isinstance(values, Stored):
        return int(values.tensor.data_type)
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))


def value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    """Name, type and shape as ONNX says them; as they were read, while they are still what was read."""
    origin = getattr(tensor, "origin", None)
    if isinstance(origin, onnx.ValueInfoProto):
        if type_of(origin) == (tensor.dtype, None if tensor.shape is None else list(tensor.shape)):
            result = onnx.ValueInfoProto()
            result.CopyFrom(origin)
            result.name = tensor.name
            return result
    elif tensor.dtype is None:
        return onnx.ValueInfoProto(name=tensor.name)
    return onnx.helper.make_tensor_value_info(tensor.name, data_type(tensor), tensor.shape)


def restore_metadata(converted: onnx.GraphProto, original: onnx.GraphProto) -> None:
    """Give back what ONNX's version converter drops: metadata, doc strings and annotations, found by output name."""
    by_output = {name: n for n in original.node for name in n.output if name}
    for node in converted.node:
        source = next((by_output[name] for name in node.output if name in by_output), None)
        if source is not None and not node.metadata_props:
            node.metadata_props.extend(source.metadata_props)
            node.doc_string = node.doc_string or source.doc_string
    converted.doc_string = original.doc_string
    del converted.metadata_props[:], converted.quantization_annotation[:]
    converted.metadata_props.extend(original.metadata_props)
    converted.quantization_annotation.extend(original.quantization_annotation)
    values = {v.name: v for v in (*original.value_info, *original.input, *original.output)}
    for value in (*converted.input, *converted.output):  # the boundary stays as declared, whatever inference finds
        if value.name in values:
            value.CopyFrom(values[value.name])
    for value in converted.value_info:
        if value.name in values and value.type == values[value.name].type:
            value.CopyFrom(values[value.name])


def type_of(value: onnx.ValueInfoProto) -> tuple[np.dtype[Any] | None, list[int | str | None] | None]:
    """Element type and shape that the edit buffer gives to a tensor; None where it is no tensor or not said."""
    if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.elem_type:
        return None, None
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if not tensor.HasField("shape"):
        return dtype, None
    return dtype, [_dim(d) for d in tensor.shape.dim]


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """A size, a name, or None; some exporters write -1 for a free dimension, which the file keeps."""
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None


def plain_value(attribute: AttributeProto) -> Any:
    """The attribute as a Python value; graphs, tensors, types and the like as the message itself."""
    if attribute.ref_attr_name:
        return attribute
    if attribute.type == AttributeProto.STRING:
        return _text(attribute.s) if _text(attribute.s) is not None else attribute
    if attribute.type == AttributeProto.STRINGS:
        texts = [_text(s) for s in attribute.strings]
        return attribute if None in texts else texts
    if attribute.type in _PLAIN:
        value = getattr(attribute, _PLAIN[attribute.type])
        return list(value) if attribute.type in (AttributeProto.FLOATS, AttributeProto.INTS) else value
    return attribute


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def literal(attribute: AttributeProto) -> Array:
    """The value of a Constant node that spells it as a number, a string or a list."""
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type in (AttributeProto.STRING, AttributeProto.STRINGS):
        return np.asarray(value, dtype=object)
    return np.asarray(value, np.float32 if attribute.name.startswith("value_float") else np.int64)
