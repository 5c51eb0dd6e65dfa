"""BatchNormalization into its neighbours: every layer, every guard."""

import numpy as np
import onnx
import pytest

from onnxopt.passes.fold_bn import FoldBatchNorm

BN = "float[4] s, float[4] b, float[4] m, float[4] v"
FOLD = FoldBatchNorm()


@pytest.fixture
def model(parse):
    """The graph's text with the parameters of one normalisation of four channels."""

    def build(text, **values):
        return parse(text, **{"v": np.linspace(0.3, 2, 4)} | values)

    return build


def test_conv(check_pass, model):
    before = model(f"""g (float[N,3,8,8] x) => (float[N,4,8,8] z) <float[4,3,3,3] w, {BN}> {{
        y = Conv <pads=[1,1,1,1]> (x, w)
        z = BatchNormalization <epsilon=0.01> (y, s, b, m, v)
    }}""")
    check_pass(FOLD, before, ops="Conv", changed=1)
