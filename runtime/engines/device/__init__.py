"""The engine on a GPU, whichever product executes the graphs."""
