"""Names of the built-in methods, in a module of their own so that the command line need not import the methods."""

METHODS = ("inst", "inst-instant", "textual-inversion", "sdm", "adain", "gatys")
"""InST with learned or instant styles, textual inversion, Stable Diffusion with captions, AdaIN, Gatys et al."""
