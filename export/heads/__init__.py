"""Medusa heads in memory, and every public format read into them."""
