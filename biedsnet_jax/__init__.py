"""Diffusion networks that segment medical images, in JAX and Flax."""

__version__ = "0.1.0"
