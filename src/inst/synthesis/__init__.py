"""Synthesis: make pictures in a style, from a photo or a prompt."""
