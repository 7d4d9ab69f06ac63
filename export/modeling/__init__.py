"""What a model's code does in a step, and the parts that the export replaces."""
