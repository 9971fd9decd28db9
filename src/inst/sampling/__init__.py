"""Sampling: noise, denoiser, solvers, and how the content of a photo goes into the noise (paper sec. 3.3)."""
