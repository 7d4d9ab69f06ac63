"""Weights that are read when they are used, whatever file they lie in."""
