"""Styles: the learned pseudo-word, its file, and the embeddings of other programs."""
