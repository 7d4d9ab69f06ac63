"""The report of a bundle on a machine that the authors do not have, as a folder to send back."""
