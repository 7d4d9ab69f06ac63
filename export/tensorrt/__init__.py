"""Engines of TensorRT and TensorRT-RTX built from a bundle's graphs."""
