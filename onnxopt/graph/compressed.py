"""How small a model gets when it is compressed, as for a download or an update."""

from __future__ import annotations

import zstandard

from onnxopt.graph.model import Model
from onnxopt.graph.proto import raw_bytes

_LEVEL = 3
_PIECE = 16 * 2**20


def compressed_bytes(model: Model) -> int:
    """Bytes of a model's structure and weights, packed by zstd at its default level; nothing is kept."""
    proto, weights = model.structure()
    packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
    size = len(packer.compress(proto.SerializeToString(deterministic=True)))
    for constant in weights.values():
        content = raw_bytes(constant)
        for start in range(0, len(content), _PIECE):
            size += len(packer.compress(content[start : start + _PIECE]))
        model.release()
    return size + len(packer.flush())
