"""The decode loop: drafting, the steps of many sequences together, and acceptance."""
