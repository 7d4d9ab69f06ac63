"""Thresholds of typical acceptance: how many tokens they accept, and at what quality."""
