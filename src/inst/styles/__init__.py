"""Styles: the learned pseudo-word, its file, and the embedding files of other programs."""
