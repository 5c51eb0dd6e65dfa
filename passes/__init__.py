"""The passes that ship with onnxopt: one file each, found by looking in this folder."""

if __name__ != "onnxopt.passes":
    raise ImportError("import onnxopt.passes, not passes: a bare import would make a second copy of every class")
