"""Files and folders that appear whole or not at all, and names of them in messages."""

from collections.abc import Iterable


def listed(keys: Iterable[str]) -> str:
    """Joins the first five names, in order, and counts the others."""
    shown = sorted(keys)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
