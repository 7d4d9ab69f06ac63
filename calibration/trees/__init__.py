"""The tree that is fastest: accuracy of the heads, replayed steps, search."""
