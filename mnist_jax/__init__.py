"""A reference JAX trainer: MNIST, done exactly, in pure functions."""

__version__ = "0.1.0"
