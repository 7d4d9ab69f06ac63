"""Benchmarks, and calibrations that fit a bundle to a machine: tree, thresholds, weight formats."""
