"""Backbones: found by name, opened with their config, tokenizer and weights."""
