"""The exact passes together: on random graphs, and on published models where there are some."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.core.manager import PassManager
from onnxopt.data.dataset import open_dataset
from onnxopt.graph import io
from onnxopt.graph.vocabulary import index_bounds
from onnxopt.passes.clean import Clean
from onnxopt.passes.fold_bn import FoldBatchNorm
from onnxopt.passes.fold_constants import FoldConstants

PASSES = (FoldConstants(), Clean(), FoldBatchNorm())

# Each makes {y} of {x}, both float[N,4,6,6]; weights by their first letter: see WEIGHTS.
STEPS = [
    "{y} = Conv <pads=[1,1,1,1]> ({x}, w{i}, b{i})",
    "{y} = Conv <group=2> ({x}, g{i})",
    "{y} = ConvTranspose <group=2> ({x}, g{i}, b{i})",
    "{y} = BatchNormalization ({x}, s{i}, b{i}, b{i}, v{i})",
    "{y} = Mul ({x}, k{i})",
    "{y} = Add (k{i}, {x})",
    "{y} = Div ({x}, p{i})",
    "{y} = Add ({x}, zero)",
    "{y} = Relu ({x})",
    "{y} = Identity ({x})",
    "{y} = Dropout ({x})",
    "{y} = Cast <to=1> ({x})",
    "t{i} = Cast <to=11> ({x}) {y} = Cast <to=1> (t{i})",
    "t{i} = Transpose <perm=[1,0,3,2]> ({x}) {y} = Transpose <perm=[1,0,3,2]> (t{i})",
    "t{i} = Flatten ({x}) {y} = Reshape (t{i}, shape)",
    "t{i} = Shape ({x}) u{i} = Slice (t{i}, from, to) c{i} = Concat <axis=0> (whole, u{i}) {y} = Reshape ({x}, c{i})",
    "t{i} = Abs (k{i}) u{i} = Add (t{i}, p{i}) {y} = Mul ({x}, u{i})",
    "t{i} = Relu ({x}) {y} = Add ({x}, t{i})",
    "{y} = Add ({x}, x)",
]
WEIGHTS = {"w": "4,4,3,3", "g": "4,2,1,1", "b": "4", "s": "4", "v": "4", "k": "4,1,1", "p": "1,4,1,1"}
FIXED = "float zero = {0}, int64[4] shape = {-1,4,6,6}, int64[1] from = {1}, int64[1] to = {4}, int64[1] whole = {-1}"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=7), st.integers(0, 9))
def test_random_chains(check_pass, parse, steps, seed):
    names = ["x", *(f"a{i}" for i in range(1, len(steps))), "y"]
    nodes = " ".join(s.format(x=names[i], y=names[i + 1], i=i) for i, s in enumerate(steps))
    used = re.findall(r"(?<=[ (])([wgbsvkp])(\d)(?=[,)])", nodes)
    weights = [FIXED, *(f"float[{WEIGHTS[kind]}] {kind}{i}" for kind, i in sorted(set(used)))]
    positive = {f"v{i}": np.linspace(0.5, 2, 4) for i in range(7)} | {f"p{i}": 0.7 for i in range(7)}
    proto = parse(
        f"g (float[N,4,6,6] x) => (float[] z) <{', '.join(weights)}> {{ {nodes} z = Relu (y) }}", seed=seed, **positive
    )
    for step in PASSES:
        proto = check_pass(step, proto, skipped=None).model.to_proto()
    left = [node.op_type for node in proto.graph.node]
    assert "Shape" not in left
    assert left.count("Dropout") == left.count("Cast") == 0


ZOO = Path(os.environ.get("ONNXOPT_ZOO", "/nowhere"))


@pytest.mark.zoo
@pytest.mark.parametrize("path", sorted(ZOO.glob("*.onnx")), ids=lambda p: p.stem)
def test_published_models(path):
    model = io.load(path)
    data = open_dataset("synthetic", model.inputs, samples=1, bounds=index_bounds(model))
    before = len(list(model.nodes()))
    PassManager(PASSES, check_each=True).run(model, data)  # raises where an output moves
    assert len(list(model.nodes())) <= before
