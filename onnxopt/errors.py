"""Every error that a user can cause, as one tree.

    OnnxOptError
    ├── ModelError            the file is not a model that can be worked on
    │   └── ExternalDataError the weights beside the file are missing, too short, or outside its folder
    ├── SpecError             an unknown pass, option, preset or recipe
    ├── DataError             the feeds do not fit the model, or cannot be read
    ├── ExecutionError        ONNX Runtime cannot run the model
    ├── OutputError           the result cannot be written
    └── PassError             a pass left a graph that is not whole (exit code 1: nothing is saved)

A message is one line: what was wrong, where, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class OnnxOptError(Exception):
    """Base of all errors meant for the user; ``exit_code`` is what the command line ends with."""

    exit_code: ClassVar[int] = 2


class ModelError(OnnxOptError):
    """The file is not a model that can be worked on."""


class ExternalDataError(ModelError):
    """The data beside the model is missing, too short, or outside the allowed folder."""


class SpecError(OnnxOptError):
    """A pass, option, preset or recipe that does not exist or has a wrong value."""


class DataError(OnnxOptError):
    """The data does not fit the model's inputs, or cannot be read."""


class ExecutionError(OnnxOptError):
    """ONNX Runtime cannot load or run the model."""


class OutputError(OnnxOptError):
    """The result cannot be written where it was asked for."""


class PassError(OnnxOptError):
    """A pass broke the graph; the step's name and the broken rule are in the message."""

    exit_code: ClassVar[int] = 1


class TargetError(OnnxOptError):
    """A target that is required cannot be used from here, or what a target needs cannot be set up."""

    exit_code: ClassVar[int] = 4
