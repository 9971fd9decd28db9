"""The frozen model: its parts, its text side, the paper's inversion module, and how all of it is loaded."""
