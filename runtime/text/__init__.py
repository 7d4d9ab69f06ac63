"""Conversion between text and tokens: prompts, chat templates, streams and stop texts."""
