"""The passes that ship with onnxopt: one file each, found by looking in this folder.

Every pass class can be had from here by its name: ``passes.Quant(calibration="mse")``.
"""

from __future__ import annotations

if __name__ != "onnxopt.passes":
    raise ImportError("import onnxopt.passes, not passes: a bare import would make a second copy of every class")


def __getattr__(name: str) -> type:
    from onnxopt.core.spec import known_passes

    if not name.startswith("_"):
        for pass_type in known_passes().values():
            if pass_type.__name__ == name:
                return pass_type
    raise AttributeError(f"there is no pass class '{name}' in onnxopt.passes")
