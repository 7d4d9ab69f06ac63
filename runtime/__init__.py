"""Decoding from a bundle with numpy and one engine, without torch, transformers and onnx."""
