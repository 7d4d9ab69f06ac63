"""Decoding from a bundle with numpy and one engine: no torch, no transformers, no onnx."""
