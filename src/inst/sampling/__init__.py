"""Sampling: noise, denoiser, solvers, and how a photo's content goes into the noise (paper sec. 3.3)."""
