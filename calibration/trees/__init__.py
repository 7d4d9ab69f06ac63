"""The fastest tree: accuracy of the heads, replay of decode steps, search."""
