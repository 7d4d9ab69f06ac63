"""Measurements that fit a bundle to a machine; so far the prompts that they run on."""
