"""The benchmark: Medusa and plain decoding side by side on one session."""
