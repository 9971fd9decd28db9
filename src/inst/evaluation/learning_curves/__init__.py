"""Learning curves: how fast the variants of the inversion module learn."""
