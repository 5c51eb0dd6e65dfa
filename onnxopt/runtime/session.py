"""Run a model on ONNX Runtime's CPU provider: whole models or files, with any inner tensor watched."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

# ONNX Runtime collects usage data by default since 1.29; it reads this when it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import onnxruntime as ort

from onnxopt.errors import ExecutionError
from onnxopt.graph import io
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array, Feed

__version__ = str(ort.__version__)
_EMBED_LIMIT = 2**30


class Session:
    """A model ready to run.

    ``outputs`` are tensors to read instead of the model's own outputs (inputs of the model may be among them);
    ``optimize`` False runs the graph as it is written, without fusions; ``save_optimized`` keeps what ONNX Runtime made
    of it; ``profile`` is where the times of all kernels go until ``end_profile``; ``arm_rules`` lets it choose integer
    kernels as its ARM builds do, which shows what those would run, but not how fast. Raises ExecutionError when
    ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        model: Model | str | Path,
        *,
        threads: int = 1,
        outputs: Sequence[str] | None = None,
        optimize: bool = True,
        save_optimized: str | Path | None = None,
        arm_rules: bool = False,
        profile: str | Path | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Idle workers would spin on after a run, and make another session beside this one up to three times slower.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        if arm_rules:
            options.add_session_config_entry("session.qdqisint8allowed", "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if save_optimized is not None:
            options.optimized_model_filepath = str(save_optimized)
            # Beside it, so that models of any size can be saved.
            weights = f"{Path(save_optimized).name}.data"
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        try:
            self._session = self._open(model, options, outputs)
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            raise ExecutionError(f"ONNX Runtime {__version__} cannot load the model: {_reason(error)}") from error
        own = [o.name for o in self._session.get_outputs()]
        self.outputs: list[str] = own if outputs is None else list(outputs)
        self._inputs = {i.name for i in self._session.get_inputs()}
        self._fetch = [name for name in self.outputs if name not in self._inputs]

    def _open(
        self, model: Model | str | Path, options: ort.SessionOptions, outputs: Sequence[str] | None
    ) -> ort.InferenceSession:
        providers = ["CPUExecutionProvider"]
        if not isinstance(model, Model):
            return ort.InferenceSession(str(model), options, providers)
        if model.constant_bytes() < _EMBED_LIMIT:
            proto = _with_outputs(model.to_proto(), outputs)
            return ort.InferenceSession(proto.SerializeToString(), options, providers)
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
            path = Path(folder) / "model.onnx"
            io.save(model, path)
            path.write_bytes(_with_outputs(onnx.load(path, load_external_data=False), outputs).SerializeToString())
            return ort.InferenceSession(str(path), options, providers)

    def end_profile(self) -> Path:
        """Where the times were written; what runs from now on is not recorded."""
        return Path(self._session.end_profiling())

    def run(self, feed: Feed) -> dict[str, Array]:
        """The watched tensors by name. Raises ExecutionError when the model fails on this feed."""
        try:
            values = self._session.run(self._fetch, feed) if self._fetch else []  # to ONNX Runtime, none means all
        except Exception as error:  # see above
            raise ExecutionError(f"ONNX Runtime {__version__} cannot run the model: {_reason(error)}") from error
        found = dict(zip(self._fetch, values, strict=True))
        return {name: np.asarray(feed[name]) if name in self._inputs else found[name] for name in self.outputs}


def providers() -> tuple[str, ...]:
    """The execution providers of the installed ONNX Runtime."""
    return tuple(ort.get_available_providers())


def _with_outputs(proto: onnx.ModelProto, outputs: Sequence[str] | None) -> onnx.ModelProto:
    """The same model with more tensors made visible; ONNX Runtime finds their types itself."""
    if outputs is not None:
        have = {o.name for o in (*proto.graph.output, *proto.graph.input)}
        proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(outputs) if n not in have)
    return proto


def _reason(error: Exception) -> str:
    """The telling part of ONNX Runtime's message, in one line: without error codes and places in its source."""
    text = " ".join(str(error).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return re.sub(r"^/\S+:\d+ .*?\) ", "", text)[:300]
