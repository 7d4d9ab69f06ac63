"""Logits processors: changes to a position's logits before its token is chosen."""
