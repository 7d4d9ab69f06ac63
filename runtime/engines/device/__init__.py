"""The engine on a GPU, independent of the product that runs the graphs."""
