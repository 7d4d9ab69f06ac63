"""Checkpoints that read images or sound besides text."""
