"""Every public layout of Medusa head checkpoints, read and written through one in-memory form."""
