"""Weights rounded to 8 and 4 bits, and which weight gets which format."""
