"""The frozen model: its parts, its text encoders, the paper's inversion module, and the code that loads them."""
