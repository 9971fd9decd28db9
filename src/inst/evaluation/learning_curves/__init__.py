"""Learning curves: how fast the forms of the inversion module learn."""
