"""Thresholds of typical acceptance: replies at many of them, and what they are worth."""
