"""Medusa heads written in any public format."""
