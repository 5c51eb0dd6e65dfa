"""Made once, used by targets: an ARM system to emulate, and other versions of ONNX Runtime."""
