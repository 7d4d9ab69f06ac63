"""Bodies of requests, and the kinds of values that their fields have."""
