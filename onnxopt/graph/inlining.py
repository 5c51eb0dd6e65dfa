"""Put the bodies of a model's local functions where they are called, so that whoever looks at nodes sees them all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import onnx
from onnx import inliner

from onnxopt.errors import ModelError
from onnxopt.graph import proto as protos
from onnxopt.graph.importer import Origin
from onnxopt.graph.model import Model
from onnxopt.graph.stored import Stored

_Key: TypeAlias = tuple[str, str, str]
# Constants of functions up to this many bytes are copied to every call: shapes, axes, sizes.
_COPIED_BYTES = 1024


def inline_functions(model: Model) -> tuple[int, dict[str, str]]:
    """Replace calls of local functions by what they do; returns how many went, and why which functions stay.

    Weights are not copied, those inside functions neither: all calls share them. Raises ModelError where ONNX's inliner
    gives up; the model is then as before.
    """
    if not model.header.functions:
        return 0, {}
    proto, aside = model.structure()
    weights: dict[str, tuple[object, Origin]] = {k: (c._values, c.origin) for k, c in aside.items()}
    _give_defaults(proto)
    _import_domains(proto)
    for i, tensor in enumerate(list(_constants(proto.functions))):
        weights[f"function {i}"] = _set_aside(tensor, f"function {i}")
    calls = [_callee(n) for n in _nodes(proto.graph.node)]
    try:
        inlined = inliner.inline_local_functions(proto)
        if inlined.functions:
            with contextlib.suppress(Exception):  # raises whatever the version converter and shape inference do
                inlined = inliner.inline_local_functions(inlined, convert_version=True)
    except Exception as error:  # RuntimeError of a recursion, protobuf's errors, bare C++ exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1][-200:]
        raise ModelError(f"cannot put local functions where they are called: {reason}") from error
    left = {_key(f): f for f in inlined.functions}
    changed = sum(_key(f) not in left for f in proto.functions for call in calls if call == _key(f))
    if changed:
        protos.restore_metadata(inlined.graph, proto.graph)
        model.adopt(Model.from_proto(inlined, weights, model.path, model.mapped))
    return changed, {f"{f.domain}.{f.name}": _why(f, model.opset) for f in left.values() if _key(f) in calls}


def _why(function: onnx.FunctionProto, opset: int) -> str:
    own = next((o.version for o in function.opset_import if o.domain in ("", "ai.onnx")), opset)
    if own != opset:
        return f"it is written for opset {own}, the model for {opset}, and cannot be converted: export with one opset"
    return "ONNX's inliner leaves it: it imports other versions of operators than the model"


def _key(function: onnx.FunctionProto) -> _Key:
    return function.domain, function.name, function.overload


def _callee(node: onnx.NodeProto) -> _Key:
    return node.domain, node.op_type, node.overload


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and those of their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _nodes(body.node)


def _give_defaults(proto: onnx.ModelProto) -> None:
    """Write down at each call the attributes that are left to their defaults, which the inliner does not look at."""
    defaults = {_key(f): f.attribute_proto for f in proto.functions if f.attribute_proto}
    for nodes in (proto.graph.node, *(f.node for f in proto.functions)):
        for node in _nodes(nodes):
            given = {a.name for a in node.attribute}
            node.attribute.extend(a for a in defaults.get(_callee(node), ()) if a.name not in given)


def _import_domains(proto: onnx.ModelProto) -> None:
    """Let the model import what its functions import."""
    known = {o.domain or "ai.onnx" for o in proto.opset_import}
    for function in proto.functions:
        for wanted in function.opset_import:
            if (wanted.domain or "ai.onnx") not in known:
                known.add(wanted.domain or "ai.onnx")
                proto.opset_import.append(wanted)


def _constants(functions: Iterable[onnx.FunctionProto]) -> Iterator[onnx.TensorProto]:
    """The large tensors in the Constant nodes of functions."""
    for function in functions:
        for node in _nodes(function.node):
            for attribute in node.attribute:
                if attribute.name == "value" and node.op_type == "Constant" and attribute.t.ByteSize() > _COPIED_BYTES:
                    yield attribute.t


def _set_aside(tensor: onnx.TensorProto, key: str) -> tuple[Stored, onnx.TensorProto]:
    """The tensor's values, leaving the key in their place."""
    whole = onnx.TensorProto()
    whole.CopyFrom(tensor)
    bare = protos.without(whole, *protos.PAYLOAD)
    tensor.CopyFrom(bare)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=key)
    return Stored(whole), bare
