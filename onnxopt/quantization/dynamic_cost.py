"""Does it pay to compute a layer in integers whose input is quantized at every run? A fit to times, no behaviour.

Against the float kernel the integer one saves time on every product and on every weight that is read, and loses some
on every number that it quantizes, on every one that it scales back, and on being called. Picoseconds on one thread of
an x86 server with AVX512-VNNI (onnxruntime 1.31), fitted to sizes of 8 to 1024 inputs and outputs and 1 to 512 rows:

    inputs x outputs  rows   float us   integer us
      32 x 32           1       3.9         4.4
      32 x 32         512       9.7        10.0
      64 x 192         16       5.7         5.5
     128 x 512          1       5.9         5.8
     128 x 10         512      14.6        15.4
     128 x 512         32      22.6        12.4
     512 x 512          1      14.8         8.6
    2048 x 2048         1       257          80
    2048 x 2048       128      5400        1500

An LSTM of 64 cells that reads 64 numbers, 60 steps: 59 and 42; of 32 cells, 50 steps: 20 and 24.
"""

from __future__ import annotations

_PRODUCT_PS = 5.2
_WEIGHT_PS = 17
_INPUT_PS = -37
_OUTPUT_PS = -83
_CALL_PS = -590_000
_STEP_PS = -130_000


def product_gain_ps(rows: float, inputs: int, outputs: int, weights: int) -> float:
    """What (rows, inputs) times (inputs, outputs) gains by integers, in picoseconds; negative: it loses.

    ``weights`` is how many are read: more than inputs x outputs where rows have matrices of their own.
    """
    return _product_gain(rows, inputs, outputs, weights) + _CALL_PS


def lstm_gain_ps(directions: int, inputs: int, cells: int, steps: int, batch: int) -> float:
    """The same of an LSTM: all steps read the input at once; what comes back from the step before, step by step."""
    gates = 4 * cells
    before = _product_gain(steps * batch, inputs, gates, inputs * gates)
    each = _product_gain(batch, cells, gates, cells * gates) + _STEP_PS
    return directions * (before + steps * each) + _CALL_PS


def _product_gain(rows: float, inputs: int, outputs: int, weights: int) -> float:
    per_row = _PRODUCT_PS * inputs * outputs + _INPUT_PS * inputs + _OUTPUT_PS * outputs
    return rows * per_row + _WEIGHT_PS * weights
