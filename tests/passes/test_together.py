"""Passes one after the other on a sample model: each finds what those before it made, or says why there is nothing."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest

from onnxopt.check.audit import look
from onnxopt.core import spec
from onnxopt.core.manager import PassManager
from onnxopt.data.dataset import Dataset, open_dataset
from onnxopt.errors import OnnxOptError
from onnxopt.graph.cost import PRODUCTS
from onnxopt.graph.io import load
from onnxopt.graph.model import Model
from onnxopt.graph.vocabulary import index_bounds
from onnxopt.quantization.judge import Judge
from onnxopt.report.report import Report, StepReport

SAMPLES = Path(__file__).parents[2] / "sample_models"
ZOO = Path(os.environ.get("ONNXOPT_ZOO", "/nowhere"))
PRUNE, SVD = "prune:samples=32", "svd:ratio=0.5:timed=false:samples=32"
SPARSIFY = "sparsify:samples=16:criterion=magnitude"
QUANT, DYNAMIC, WEIGHTS = "quant:effort=fast:measure=false", "quant-dynamic", "quant-weights:rounding=nearest"
CLUSTER, HALF = "cluster:data=false", "fp16:weights"
LOSSY = [name for name, kind in spec.known_passes().items() if not kind.exact]


class Made(NamedTuple):
    """What a run made."""

    model: Model
    report: Report
    sqnr_db: float

    @property
    def steps(self) -> dict[str, StepReport]:
        """The lossy steps by name."""
        names = {s.spec: s.spec.partition(":")[0] for s in self.report.passes}
        return {names[s.spec]: s for s in self.report.passes if names[s.spec] in LOSSY}


@cache
def sample() -> tuple[Model, Dataset, Judge]:
    model = load(SAMPLES / "digits_mlp.onnx")
    calibration, test = open_dataset(SAMPLES / "digits_calib.npz", model.inputs, samples=48).split(0.34)
    return model, calibration, Judge(model, test, samples=16)


def run(*specs: str, keep_order: bool = False) -> Made:
    original, calibration, judge = sample()
    model = original.clone()
    report = PassManager(spec.parse(",".join(specs)), keep_order=keep_order).run(model, calibration)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    return Made(model, report, judge(model).sqnr_db)


def products(model: Model) -> int:
    return sum(n.op in PRODUCTS for n in model.nodes())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("specs", "least_db", "most_bytes"),
    [
        ((PRUNE, SVD), 30, 0.5),
        ((PRUNE, SPARSIFY), 15, 1.0),
        ((PRUNE, QUANT), 30, 0.26),
        ((PRUNE, WEIGHTS), 25, 0.17),
        ((PRUNE, CLUSTER), 20, 0.14),
        ((PRUNE, HALF), 30, 0.5),
        ((SVD, QUANT), 28, 0.14),
        ((SVD, DYNAMIC), 35, 0.2),
        ((SVD, WEIGHTS), 17, 0.1),
        ((SVD, CLUSTER), 17, 0.08),
        ((SVD, HALF), 35, 0.26),
        ((SPARSIFY, QUANT), 15, 0.26),
        ((CLUSTER, HALF), 25, 0.14),
        ((DYNAMIC, CLUSTER), 25, 0.26),
        ((PRUNE, SVD, QUANT), 25, 0.13),
        ((PRUNE, SVD, WEIGHTS), 17, 0.09),
        ((PRUNE, SVD, CLUSTER), 17, 0.08),
        ((PRUNE, SVD, HALF), 30, 0.25),
    ],
    ids=lambda v: "+".join(s.partition(":")[0] for s in v) if isinstance(v, tuple) else "",
)
def test_each_takes_what_the_last_one_left(specs: tuple[str, ...], least_db: float, most_bytes: float) -> None:
    made = run(*reversed(specs))
    assert [s.partition(":")[0] for s in specs] == list(made.steps)
    assert all(step.changed for step in made.steps.values())
    assert made.sqnr_db >= least_db
    assert made.model.constant_bytes() <= most_bytes * sample()[0].constant_bytes()


def test_factors_run_in_integers_as_whole_layers_do() -> None:
    alone, both = run(QUANT), run(SVD, QUANT)
    assert (products(alone.model), products(both.model)) == (3, 5)
    assert both.steps["quant"].changed == 5
    _, data, _ = sample()
    assert [look(made.model, data).integer_share for made in (alone, both)] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (QUANT, DYNAMIC, "quantized already"),
        (QUANT, CLUSTER, "its weights are integers already"),
        (QUANT, "fp16:anyway", "it holds integers"),
        (DYNAMIC, QUANT, "quantized already"),
        (WEIGHTS, QUANT, "quantized already"),
        (WEIGHTS, DYNAMIC, "quantized already"),
        *((CLUSTER, p, "stored as codes already") for p in (PRUNE, SVD, SPARSIFY)),
        *((CLUSTER, p, "its weights are stored as codes already") for p in (QUANT, DYNAMIC, WEIGHTS)),
        *((HALF, p, "stored as float16 already") for p in (PRUNE, SVD)),
        *((HALF, p, "its weights are stored as float16 already") for p in (QUANT, WEIGHTS, CLUSTER)),
    ],
)
def test_what_excludes_the_other_says_so(first: str, second: str, why: str) -> None:
    made = run(first, second, keep_order=True)
    before, after = made.steps.values()
    assert before.changed
    assert after.changed == 0
    assert any(why in reason for _, reason in after.skips), after.skips
    assert made.sqnr_db > 20


@pytest.mark.parametrize(("first", "how"), [(CLUSTER, "codes"), (HALF, "float16")])
def test_what_is_stored_in_few_bits_stays_small_in_a_second_run(first: str, how: str) -> None:
    original, data, _ = sample()
    made = run(first).model
    again = Model.from_proto(made.to_proto())
    report = PassManager(spec.parse(f"fold-bn,{WEIGHTS}")).run(again, data)
    folding = next(s for s in report.passes if s.spec == "fold-constants")
    assert all(f"stored as {how} already" in why for _, why in folding.skips)
    assert len(folding.skips) == (3 if how == "codes" else 5)
    assert again.constant_bytes() <= made.constant_bytes() < original.constant_bytes()
    decoded = Model.from_proto(made.to_proto())
    PassManager(spec.parse(f"fold-constants:decode,{WEIGHTS}")).run(decoded, data)
    assert decoded.constant_bytes() < 0.17 * original.constant_bytes()


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.parametrize("name", [*LOSSY, "quant-weights:bits=8", "cluster:ternary", "svd:conv=tucker", "fp16:weights"])
@pytest.mark.parametrize("path", sorted(ZOO.glob("*.onnx")), ids=lambda p: p.stem)
def test_published_models(path: Path, name: str) -> None:
    """Valid, near the original where that is promised, or left alone with a reason."""
    original = load(path)
    data = open_dataset("synthetic", original.inputs, samples=8, bounds=index_bounds(original))
    model = original.clone()
    step = next(iter(spec.parse({"quant": QUANT, "prune": "prune:samples=8"}.get(name, name))))
    try:
        report = PassManager([step]).run(model, data)
    except OnnxOptError as error:
        pytest.fail(f"{error}")
    onnx.checker.check_model(model.to_proto())
    done = report.passes[-1]
    assert done.changed or done.skips
    sqnr_db = Judge(original, data, samples=2)(model).sqnr_db
    assert sqnr_db > -float("inf")  # it runs, without NaN
    if name in ("fp16", "fp16:weights") and done.changed:
        assert sqnr_db > 20 or any("the answers keep" in note for note in done.figures["notes"])
