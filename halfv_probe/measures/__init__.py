"""Measured on a running model: curves over its layers, and the replay that terminates or reduces them."""
