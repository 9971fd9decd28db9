"""Names of the built-in methods, in a module of their own so that the command line need not import the methods."""

METHODS = ("inst", "inst-instant", "textual-inversion", "sdm", "styleid", "adain", "gatys")
"""InST with learned or instant styles, textual inversion, Stable Diffusion with captions, StyleID, AdaIN, and Gatys et
al."""
