"""Chooses a format for each weight matrix under a budget of quality or size."""
