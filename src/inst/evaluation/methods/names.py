"""The names of the built-in methods, which the command line knows without importing any of them."""

METHODS = ("inst", "inst-instant", "textual-inversion", "sdm", "adain", "gatys")
"""Ours learned and instant; textual inversion; Stable Diffusion with a caption; AdaIN; Gatys et al."""
