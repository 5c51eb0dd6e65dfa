"""Arrays against a signature: which array is which input, where its samples are, and whether its type will do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.data import images
from onnxopt.data.batching import Batching
from onnxopt.data.casting import cast, is_safe, kind
from onnxopt.data.files import ALONE, Header, Headers
from onnxopt.data.image_shape import ImageShape
from onnxopt.data.part import IntArray, Part, take
from onnxopt.data.preprocess import PRESETS, Preprocess
from onnxopt.errors import DataError
from onnxopt.graph.signature import Array, Feed, TensorSpec, describe

LABELS = ("labels", "label", "y")
Load = Callable[[tuple[str, ...]], Mapping[str, Array]]


@dataclass(frozen=True)
class Signature:
    """What feeds must look like: the inputs, how samples become feeds, and what to do with pixels (None: nothing)."""

    inputs: tuple[TensorSpec, ...]
    batching: Batching
    preprocess: Preprocess | None = None

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], preprocess: Preprocess | None = None) -> Signature:
        return cls(tuple(inputs), Batching.of(inputs), preprocess)


@dataclass(frozen=True)
class _Plan:
    """How one array becomes one input: ``stack`` gives ``(rows, *any)``, ``finish`` makes some of those final.

    ``rows`` is None for an input that has no axis for samples: it is given once.
    """

    key: str
    rows: int | None
    item: tuple[int, ...]
    stack: Callable[[Array], Array]
    finish: Callable[[Array], Array]


def part(signature: Signature, where: str, headers: Headers, load: Load) -> tuple[Part, tuple[str, ...]]:
    """Arrays as samples, and what the report must say about them.

    ``headers`` are type and shape by name; ``load(names)`` gives the arrays when they are wanted. An array may have
    one axis less than the input (a single sample) or one more (stacked feeds). Raises DataError when a name, a type,
    the rank or a size does not fit.
    """
    inputs, whole = signature.inputs, signature.batching.whole
    keys, label, notes = _match(where, inputs, headers)
    plans: dict[str, _Plan] = {}
    for spec in inputs:
        plans[spec.name], said = _plan(signature, where, spec, keys[spec.name], headers[keys[spec.name]])
        notes += said
    if signature.preprocess is not None and all(headers[p.key].dtype != np.uint8 for p in plans.values()):
        raise DataError(f"{where} holds no uint8 images; leave the preprocessing out if they are prepared already")
    rows = _rows(where, inputs, plans, whole)
    _agree(where, inputs, plans, whole)
    labels, said = _labels(where, headers, label, rows, load)
    constants = {n: load((p.key,))[p.key].reshape(()) for n, p in plans.items() if p.rows is None}

    def read(chosen: IntArray) -> Feed:
        arrays = load(tuple(keys.values()))
        return {name: plan.finish(_choose(plan, arrays[plan.key], chosen)) for name, plan in plans.items()}

    form = tuple((n, p.item) for n, p in plans.items()), tuple((n, v.item()) for n, v in constants.items())
    return Part(where, rows, form, read, labels), (*notes, *said)


def _match(
    where: str, inputs: Sequence[TensorSpec], headers: Headers
) -> tuple[dict[str, str], str | None, tuple[str, ...]]:
    """Input name -> array name, the array of labels, and notes."""
    names = [s.name for s in inputs]
    label = next((k for k in LABELS if k in headers and k not in names and len(headers) > 1), None)
    left = [k for k in headers if k != label]
    if len(names) == len(left) == 1:
        own = left[0] in (names[0], ALONE)
        return {names[0]: left[0]}, label, () if own else (f"the array {left[0]!r} feeds the input {names[0]!r}",)
    if set(names) == set(left):
        return {n: n for n in names}, label, ()
    given = ", ".join(f"{k or 'one array'}: {h}" for k, h in headers.items()) or "nothing"
    missing = ", ".join(repr(n) for n in names if n not in left)
    extra = ", ".join(repr(k) for k in left if k not in names and k != ALONE)
    faults = [f"no array for the input {missing}"] * bool(missing) + [f"no input named {extra}"] * bool(extra)
    raise DataError(
        f"{where}: {', '.join(faults)}; the model takes {describe(inputs)}, given {given}; "
        "name the arrays like the inputs, and 'labels' if there are any"
    )


def _plan(
    signature: Signature, where: str, spec: TensorSpec, key: str, header: Header
) -> tuple[_Plan, tuple[str, ...]]:
    whole = signature.batching.whole
    if signature.preprocess is not None and header.dtype == np.uint8 and ImageShape.of(spec) is not None:
        return _image_plan(signature.preprocess, whole, where, spec, key, header)
    if not is_safe(header.dtype.newbyteorder("="), spec.dtype):
        raise _unfit(where, spec, header, _advice(spec, header))
    rows, item = _rows_and_item(whole, where, spec, header)
    for want, have in zip((spec.shape or ()) if whole else (spec.shape or ())[1:], item, strict=False):
        if isinstance(want, int) and want != have:
            raise _unfit(where, spec, header, f"a size is {have} where the graph fixes {want}: reshape or cut the data")
    stacked = () if rows is None else (rows, *item)
    same = header.dtype.newbyteorder("=") == spec.dtype or kind(spec.dtype) == "text"
    notes = () if same else (f"{spec.name!r} is converted from {header.dtype} to {spec.dtype}",)
    return _Plan(key, rows, item, lambda a: a.reshape(stacked), lambda a: cast(a, spec, where)), notes


def _image_plan(
    preprocess: Preprocess, whole: bool, where: str, spec: TensorSpec, key: str, header: Header
) -> tuple[_Plan, tuple[str, ...]]:
    fitted, notes = images.fit(preprocess, spec, whole)
    probe = images.as_pixels(np.broadcast_to(np.uint8(0), header.shape))
    if probe is None:
        raise _unfit(where, spec, header, "pixels to preprocess must be uint8[samples,height,width,channels]")

    def pixels(array: Array) -> Array:
        found = images.as_pixels(array)
        assert found is not None
        return found

    def finish(chosen: Array) -> Array:
        return fitted.normalise(fitted.resize(chosen))

    return _Plan(key, len(probe), fitted.item, pixels, finish), notes


def _rows_and_item(whole: bool, where: str, spec: TensorSpec, header: Header) -> tuple[int | None, tuple[int, ...]]:
    """The number of samples in an array, and the shape of one (of a whole feed, where samples are that)."""
    shape = header.shape
    surplus = 0 if spec.shape is None else len(shape) - len(spec.shape)
    if whole:
        if surplus == 1:
            return shape[0], shape[1:]
        if surplus == 0:
            return 1, shape
        if surplus == -1 and spec.shape and (spec.shape[0] == 1 or not isinstance(spec.shape[0], int)):
            return 1, (1, *shape)
        raise _unfit(
            where, spec, header, "give an array of that shape for each feed, or several stacked on a new first axis"
        )
    if spec.shape == ():
        if math.prod(shape) == 1:
            return None, ()
        raise _unfit(where, spec, header, "give one number for all samples, or a folder with one file for each value")
    if surplus == 0 and shape:
        return shape[0], shape[1:]
    if surplus == 1:
        return shape[0] * shape[1], shape[2:]
    if surplus == -1:
        return 1, shape
    sizes = ",".join(["samples", *("?" if d is None else str(d) for d in (spec.shape or (0,))[1:])])
    raise _unfit(where, spec, header, f"its shape must be [{sizes}]")


def _rows(where: str, inputs: Sequence[TensorSpec], plans: Mapping[str, _Plan], whole: bool) -> int:
    """How many samples: every input must have as many. In whole feeds, an input given once serves for all."""
    counts = {n: p.rows for n, p in plans.items() if p.rows is not None}
    several = {n: r for n, r in counts.items() if r != 1} if whole else counts
    if len(set(several.values())) > 1:
        given = ", ".join(f"{n!r} has {r}" for n, r in several.items())
        raise DataError(f"{where}: {given} samples; give the same number for each (the model takes {describe(inputs)})")
    rows = next(iter(several.values()), 1)
    if rows == 0:
        raise DataError(f"{where} holds no samples; the model takes {describe(inputs)}")
    return rows


def _agree(where: str, inputs: Sequence[TensorSpec], plans: Mapping[str, _Plan], whole: bool) -> None:
    """A named dimension has one size among all inputs of a feed."""
    seen: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        dims = (spec.shape or ()) if whole else (spec.shape or ())[1:]
        for dim, size in zip(dims, plans[spec.name].item, strict=False):
            if isinstance(dim, str) and seen.setdefault(dim, (size, spec.name))[0] != size:
                raise DataError(
                    f"{where}: dimension {dim!r} is {seen[dim][0]} in {seen[dim][1]!r} and {size} in {spec.name!r}; "
                    f"give it one size in all inputs (the model takes {describe(inputs)})"
                )


def _labels(
    where: str, headers: Headers, key: str | None, rows: int, load: Load
) -> tuple[IntArray | None, tuple[str, ...]]:
    if key is None:
        return None, ()
    header = headers[key]
    if header.dtype.kind not in "iu" or math.prod(header.shape) != max(header.shape, default=1):
        return None, (f"{key!r} is {header}, no list of class numbers, so there are no labels",)
    labels = np.asarray(load((key,))[key]).reshape(-1).astype(np.int64)
    if labels.size != rows:
        raise DataError(f"{where}: {labels.size} values in {key!r} for {rows} samples; give one for each")
    return labels, ()


def _advice(spec: TensorSpec, header: Header) -> str:
    if header.dtype == np.uint8 and ImageShape.of(spec) is not None:
        return f"say how pixels become inputs: --preprocess {', '.join(PRESETS)}, or a .toml file"
    return f"save it as {spec.dtype}"


def _unfit(where: str, spec: TensorSpec, header: Header, advice: str) -> DataError:
    return DataError(f"{where}: the model takes {spec}, given {header}; {advice}")


def _choose(plan: _Plan, array: Array, rows: IntArray) -> Array:
    stacked = plan.stack(array)
    if plan.rows is None:
        return stacked
    if plan.rows == 1:  # one sample, or one value for every feed
        return np.broadcast_to(stacked, (rows.size, *stacked.shape[1:])) if rows.size != 1 else stacked
    return take(stacked, rows)
