"""Engines: whatever executes a bundle's graphs and owns the KV cache."""
