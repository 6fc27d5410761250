"""The classic Keras lesson, number for number: every default, and nothing else.

Command: python -m mnist_jax.train --config configs/default.py
"""

from mnist_jax.config import Config

config = Config()
