"""Calls of functions: how a chat template writes them, how a reply is read, and its grammar."""
