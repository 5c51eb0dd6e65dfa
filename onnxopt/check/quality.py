"""How far a candidate's answers are from the reference's: what passes judge by, and what validation reports."""

from onnxopt.core.quality import Comparison, Quality

__all__ = ["Comparison", "Quality"]
