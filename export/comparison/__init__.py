"""A finished bundle compared with the model that it came from."""
