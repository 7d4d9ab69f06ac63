"""Files that ship with the package: known models, their shapes, heads and chat templates."""
