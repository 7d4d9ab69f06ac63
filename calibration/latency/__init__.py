"""Step times of this machine: measured, and as a curve over the number of nodes."""
