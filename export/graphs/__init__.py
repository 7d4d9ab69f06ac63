"""The graphs of a bundle: modules that are traced, and graphs built node by node."""
