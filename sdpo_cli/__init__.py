"""Stepwise Diffusion Policy Optimization for few-step text-to-image models (arXiv 2411.11727)."""

__version__ = "0.1.0"
