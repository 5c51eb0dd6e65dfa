"""Calibration and evaluation samples, the same for every tool: ``.npz`` files, arrays named like the inputs.

The first axis of each array counts samples; an array with one axis more than the model's input holds whole feeds.
Photographs, CIFAR-10 and keywords come from a data folder; prose, speech, music and spectra are made here, seeded.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt import load, open_dataset
from onnxopt.data.preprocess import Preprocess
from onnxopt.graph.signature import Array, TensorSpec

OURS = Path(__file__).parents[2] / "sample_models"
RATE = 16000
_MELS = 128
_FRAMES = 5
_WINDOW = 1024


@dataclass(frozen=True)
class Request:
    """What a recipe is asked for: ``count`` samples for these inputs; ``table`` is the model's entry of models.toml."""

    folder: Path
    inputs: tuple[TensorSpec, ...]
    table: Mapping[str, Any]
    count: int
    calibration: bool

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng([17, self.calibration])

    @property
    def name(self) -> str:
        return self.inputs[0].name


def places(name: str, models: Path, samples: Path) -> tuple[Path, Path, Path]:
    """The model, the samples to calibrate with, the samples to judge by."""
    if name.startswith("digits"):
        return OURS / f"{name}.onnx", OURS / "digits_calib.npz", OURS / "digits_test.npz"
    return models / f"{name}.onnx", samples / f"{name}.calib.npz", samples / f"{name}.eval.npz"


def prepare(model: Path, data: Path, table: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """The calibration and the evaluation file of one model; made unless they are there."""
    paths = folder / f"{model.stem}.calib.npz", folder / f"{model.stem}.eval.npz"
    folder.mkdir(parents=True, exist_ok=True)
    for path, part in zip(paths, ("calibration", "evaluation"), strict=True):
        if not path.exists():
            request = Request(data, load(model).inputs, table, table[part], part == "calibration")
            arrays = _RECIPES[table["samples"]](request)
            unfinished = path.with_suffix(".part.npz")
            contiguous: dict[str, Any] = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            np.savez(unfinished, **contiguous)
            unfinished.replace(path)
    return paths


def cifar(request: Request) -> dict[str, Array]:
    """Calibration from the training images, evaluation from the test images; prepared where ``mean`` is given.

    Drawn at random: the images are sorted by class.
    """
    which = "train" if request.calibration else "test"
    with np.load(request.folder / "cifar10.npz", allow_pickle=False) as arrays:
        images, labels = (arrays[f"{which}_{part}"] for part in ("images", "labels"))
    chosen = request.rng.choice(len(images), request.count, replace=False)
    images, labels = images[chosen], labels[chosen]
    values = images.astype(np.float32)
    if "mean" in request.table:
        mean, std = (np.array(request.table[key], np.float32) for key in ("mean", "std"))
        values = (values / 255 - mean) / std
    return {request.name: values.transpose(0, 3, 1, 2), "labels": labels.astype(np.int64)}


def keywords(request: Request) -> dict[str, Array]:
    """Spectra of spoken words; evaluation is what follows the samples for calibration."""
    start = 0 if request.calibration else request.table["calibration"]
    with np.load(request.folder / "kws_mfcc.npz", allow_pickle=False) as arrays:
        x, y = (arrays[key][start : start + request.count] for key in ("x", "y"))
    return {request.name: x, "labels": y.astype(np.int64)}


def photographs(request: Request) -> dict[str, Array]:
    """Photographs in an order drawn once; evaluation is what follows those for calibration."""
    spec = request.inputs[0]
    table: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in request.table["preprocess"].items()}
    height, width = table["crop"]
    fixed = TensorSpec(spec.name, spec.dtype, ("N", spec.shape[1] if spec.shape else 3, height, width))
    images = open_dataset(request.folder / "imagenet-nips17", (fixed,), preprocess=Preprocess(**table))
    start = 0 if request.calibration else request.table["calibration"]
    order = np.random.default_rng(17).permutation(images.count)
    chosen = images.subset(order[start : start + request.count])
    arrays = {spec.name: np.concatenate([feed[spec.name] for feed in chosen.batches(32)])}
    labels = chosen.labels if request.table.get("labelled") else None
    return arrays if labels is None else arrays | {"labels": labels}


def prose(request: Request) -> dict[str, Array]:
    """English text as bytes: Python's own documentation, odd topics for calibration, even ones for evaluation."""
    topics = sorted(pydoc_data.topics.topics.items())
    text = " ".join(" ".join(t.split()) for _, t in topics[int(request.calibration) :: 2])
    letters = np.frombuffer(text.encode("ascii", "ignore"), np.uint8)
    length = request.table["length"]
    starts = request.rng.choice(letters.size - length, request.count, replace=False)
    return {request.name: letters[starts[:, None] + np.arange(length)]}


def speech(request: Request) -> dict[str, Array]:
    """Pieces of speech-like sound and of silence, and states of zeros."""
    sound, rng, length = _sound(request.rng, 120, voice=True), request.rng, request.table["length"]
    starts = rng.choice(sound.size - length, request.count, replace=False)
    arrays = {request.name: sound[starts[:, None, None] + np.arange(length)]}
    for state in request.inputs[1:]:
        sizes = [size for size in state.shape or () if isinstance(size, int)]
        arrays[state.name] = np.zeros((request.count, *sizes), state.dtype)
    return arrays


def music(request: Request) -> dict[str, Array]:
    """Stretches of tones, two seconds each at 22050 Hz."""
    length = request.table["length"]
    sound = _sound(request.rng, request.count * length / RATE, voice=False)
    return {request.name: sound[: request.count * length].reshape(request.count, length, 1)}


def spectra(request: Request) -> dict[str, Array]:
    """Five frames of 128 log mel energies in dB, as for anomalies in the sound of machines (MLPerf Tiny)."""
    rng = request.rng
    frames = []
    for _ in range(-(-request.count // 25)):  # one machine after another
        speed = rng.uniform(20, 90)
        time = np.arange(2 * RATE) / RATE
        hum = sum(
            rng.uniform(0, 1) / k * np.sin(2 * np.pi * k * speed * time + rng.uniform(0, 6)) for k in range(1, 40)
        )
        rattle = _murmur(rng, time.size) * (1 + np.sin(2 * np.pi * speed / 7 * time))
        frames.append(_log_mel(rng.uniform(0.01, 0.1) * (hum + rng.uniform(0.5, 3) * rattle)))
    windows = [
        f[starts[:, None] + np.arange(_FRAMES)].reshape(25, -1)
        for f in frames
        for starts in [rng.choice(len(f) - _FRAMES, 25, replace=False)]
    ]
    return {request.name: np.concatenate(windows)[: request.count].astype(np.float32)}


def _sound(rng: np.random.Generator, seconds: float, voice: bool) -> Array:
    """Voice: syllables of a gliding pitch under formants, with pauses. Otherwise notes of one to four tones."""
    pieces, total = [], 0
    while total < seconds * RATE:
        length = int(rng.uniform(0.08, 0.35) * RATE) if voice else int(rng.uniform(0.15, 0.8) * RATE)
        time = np.arange(length) / RATE
        rise = np.minimum(1, np.minimum(time, time[::-1]) / 0.02)
        wave = np.zeros(length)
        if voice and rng.random() < 0.75:
            pitch = rng.uniform(90, 260) * (1 + rng.uniform(-0.3, 0.3) * time / time[-1])
            formants = rng.uniform((300, 800, 2200), (900, 2200, 3200))
            phase = 2 * np.pi * np.cumsum(pitch) / RATE
            for k in range(1, 30):
                wave += np.exp(-(((k * pitch.mean() - formants[:, None]) / 180) ** 2)).sum() * np.sin(k * phase)
            wave *= rng.uniform(0.03, 0.25)
        elif not voice:
            for note in rng.integers(36, 84, rng.integers(1, 5)):
                base = 440 * 2 ** ((note - 69) / 12)
                fall = np.exp(-time * rng.uniform(1, 6))
                wave += sum(np.sin(2 * np.pi * k * base * time) * fall**k / k for k in range(1, 9)) * 0.12
        pieces.append(wave * rise)
        total += length
    sound = np.concatenate(pieces)[: int(seconds * RATE) + 1]
    return (sound + rng.uniform(0.002, 0.01) * _murmur(rng, sound.size)).clip(-1, 1).astype(np.float32)


def _murmur(rng: np.random.Generator, length: int) -> Array:
    """Noise that gets weaker towards high frequencies, of unit variance."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    noise: Array = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(spectrum.size) * RATE / length / 200), length)
    noise /= noise.std()
    return noise


def _log_mel(sound: Array) -> Array:
    """(frames, mels) in dB: Hann windows of 1024 at steps of 512, triangular filters up to half the rate."""
    starts = np.arange(0, sound.size - _WINDOW, _WINDOW // 2)
    pieces = sound[starts[:, None] + np.arange(_WINDOW)] * np.hanning(_WINDOW)
    return 10 * np.log10(np.abs(np.fft.rfft(pieces)) ** 2 @ _mel_filters().T + 1e-10)


@cache
def _mel_filters() -> Array:
    """(mels, frequencies): triangles evenly spaced in mel, 2595 log10(1 + f / 700) (O'Shaughnessy, 1987)."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), _MELS + 2)
    corners = 700 * (10 ** (mel / 2595) - 1)
    low, mid, high = (corners[i : i + _MELS, None] for i in range(3))
    frequency = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    filters: Array = np.maximum(0, np.minimum((frequency - low) / (mid - low), (high - frequency) / (high - mid)))
    return filters


_RECIPES: Mapping[str, Callable[[Request], dict[str, Array]]] = {
    f.__name__: f for f in (cifar, keywords, photographs, prose, speech, music, spectra)
}
