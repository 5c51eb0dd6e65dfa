"""Where samples come from: a word, a path or a ``module:function``, opened as parts."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np

from onnxopt.data import arrays, files, images, synthetic
from onnxopt.data.arrays import Signature
from onnxopt.data.image_shape import ImageShape
from onnxopt.data.part import Part
from onnxopt.data.preprocess import PRESETS
from onnxopt.errors import DataError, OnnxOptError
from onnxopt.graph.signature import Array, describe

SYNTHETIC = "synthetic"
_SYNTHETIC_COUNT = 64
# Feeds of a function are kept in memory, and a function may yield for ever.
_MOST_FEEDS = 1024
_ARRAYS = frozenset({".npz", ".npy"})
_FUNCTION = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_FORMS = "give a .npz, a .npy, a folder of either or of images, module:function, or synthetic"


@dataclass(frozen=True)
class Found:
    """A source opened: its name for the report, its parts, and what the report must say."""

    name: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    synthetic: bool = False


def find(
    source: str | Path | None, signature: Signature, *, samples: int | None, seed: int, bounds: Mapping[str, int]
) -> Found:
    """Open a source. ``samples`` bounds those that have no end, ``seed`` and ``bounds`` are for synthetic data.

    Raises DataError when there is no such source, or when it does not fit the inputs.
    """
    if source is None or source == SYNTHETIC:
        unit = signature.batching.unit
        count = max((samples or _SYNTHETIC_COUNT) // unit, 1) * unit
        part, notes = synthetic.part(signature, count, seed, bounds)
        return Found(f"synthetic (seed {seed}): {part.where}", (part,), notes, synthetic=True)
    path = Path(source)
    if path.is_dir():
        return _folder(path, signature)
    if path.suffix.lower() in _ARRAYS and path.is_file():
        return Found(path.name, *_files([path], signature))
    if _FUNCTION.match(str(source)) and not path.exists():
        return Found(str(source), *_function(str(source), signature, samples))
    what = "is no file that samples are read from" if path.exists() else "is not there"
    raise DataError(f"the data {str(source)!r} {what}; {_FORMS}")


def _folder(folder: Path, signature: Signature) -> Found:
    pictures, others = images.find(folder, images.SUFFIXES), images.find(folder, _ARRAYS)
    if pictures and others:
        raise DataError(f"{folder} holds images ({pictures[0].name}) and arrays ({others[0].name}); keep them apart")
    if pictures:
        return _images(folder, pictures, signature)
    if not others:
        raise DataError(f"{folder} holds no samples: no .npz, .npy, {', '.join(sorted(images.SUFFIXES))}")
    parts, notes = _files(others, signature)
    if all(p.labels is None for p in parts):
        parts, said = _labelled_by_name(folder, others, parts)
        notes = (*notes, *said)
    return Found(folder.name or str(folder), parts, notes)


def _images(folder: Path, paths: list[Path], signature: Signature) -> Found:
    inputs = signature.inputs
    if len(inputs) != 1 or ImageShape.of(inputs[0]) is None:
        raise DataError(
            f"{folder} holds images, and the model takes {describe(inputs)}: no single image input; "
            "give .npz feeds, or a module:function that yields them"
        )
    preprocess, notes = signature.preprocess, list[str]()
    if preprocess is None:
        preprocess = PRESETS["raw" if inputs[0].dtype == np.uint8 else "unit"]
        if inputs[0].dtype != np.uint8:
            notes.append("NO PREPROCESSING WAS GIVEN: pixels are scaled to 0..1 (unit); if that is wrong, give it")
    fitted, said = images.fit(preprocess, inputs[0], signature.batching.whole)
    part, labels_said = images.folder_part(folder, paths, fitted)
    return Found(folder.name or str(folder), (part,), (*notes, *said, *labels_said))


def _files(paths: list[Path], signature: Signature) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Each file as a part; the arrays of the one last read are kept."""
    load = lru_cache(maxsize=1)(files.load)
    return _together([arrays.part(signature, str(p), files.headers(p), partial(load, p)) for p in paths])


def _labelled_by_name(
    folder: Path, paths: list[Path], parts: tuple[Part, ...]
) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Labels from the names of folders or files, unless the numbers only count the files."""
    labels, notes = images.file_labels(folder, paths)
    if labels is None or (labels.size > 1 and np.array_equal(np.sort(labels), labels.min() + np.arange(labels.size))):
        return parts, ()
    return tuple(replace(p, labels=np.full(p.rows, v, np.int64)) for p, v in zip(parts, labels, strict=True)), notes


def _function(source: str, signature: Signature, samples: int | None) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """What a Python function yields, kept in memory: the first ``samples`` samples, or the first 1024 feeds."""
    module, _, name = source.partition(":")
    with _current_folder_first(), _blaming(source):
        made: object = importlib.import_module(module)
        for attribute in name.split("."):
            made = getattr(made, attribute)
        if callable(made):
            made = made()
        if not isinstance(made, Iterable):
            raise DataError(f"{source} gives {type(made).__name__}; it must yield arrays or dicts of arrays")
        return feeds(source, signature, made, samples)


def feeds(
    source: str, signature: Signature, made: Iterable[object], samples: int | None = None
) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Feeds, or (feed, labels), as parts; a feed is a dict, or one array where the model has one input."""
    opened: list[tuple[Part, tuple[str, ...]]] = []
    count = 0
    for number, value in enumerate(islice(made, _MOST_FEEDS if samples is None else None)):
        part, notes = _feed_part(f"{source}, feed {number}", signature, value)
        opened.append((part, notes))
        count += part.rows
        if samples is not None and count >= samples:
            opened[-1] = (_first(part, part.rows - (count - samples)), notes)
            break
    if not opened:
        raise DataError(f"{source} yields nothing; the model takes {describe(signature.inputs)}")
    parts, notes = _together(opened)
    if samples is None and len(opened) == _MOST_FEEDS:
        notes = (*notes, f"only the first {_MOST_FEEDS} feeds of {source} are taken; give samples for more")
    return parts, notes


def _feed_part(where: str, signature: Signature, value: object) -> tuple[Part, tuple[str, ...]]:
    names = {s.name for s in signature.inputs}
    labels = None
    if isinstance(value, tuple) and len(value) == 2:
        value, labels = value
    named = dict(value) if isinstance(value, Mapping) else {files.ALONE: value}
    if labels is not None:
        named[next(k for k in arrays.LABELS if k not in names)] = np.reshape(np.asarray(labels), -1)
    given = {str(name): _array(where, str(name), item) for name, item in named.items()}
    headers = {name: files.Header(array.dtype, array.shape) for name, array in given.items()}
    return arrays.part(signature, where, headers, lambda _: given)


def _array(where: str, name: str, value: object) -> Array:
    """A copy, because functions like to fill one buffer again and again."""
    try:
        array = np.array(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where}: {name or 'it'} is no array: {error}; yield arrays") from error
    if array.dtype.hasobject and not all(isinstance(v, str) for v in array.flat):
        raise DataError(f"{where}: {name or 'it'} is {type(value).__name__}, not numbers; yield arrays")
    return array


def _first(part: Part, rows: int) -> Part:
    return replace(part, rows=rows, labels=None if part.labels is None else part.labels[:rows])


def _together(opened: Sequence[tuple[Part, tuple[str, ...]]]) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Parts of one source, with each note once."""
    parts = tuple(part for part, _ in opened)
    notes = tuple(dict.fromkeys(note for _, said in opened for note in said))
    with_labels = sum(p.labels is not None for p in parts)
    if 0 < with_labels < len(parts):
        notes = (*notes, f"{with_labels} of {len(parts)} files or feeds have labels, so none are used")
    return parts, notes


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """As ``python -m`` would, look for modules in the current folder; afterwards the path is what it was."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _blaming(source: str) -> Iterator[None]:
    """What goes wrong in the user's function becomes one line that says where."""
    try:
        yield
    except OnnxOptError:
        raise
    except Exception as error:  # the function is not ours: it may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(f"{source} failed: {reason} ({last.filename}, line {last.lineno})") from error
