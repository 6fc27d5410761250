"""The classic Keras lesson, number for number: every default, and nothing else.

Command: python -m mnist_jax.train --config configs/default.py
Time:    6 s on 2 CPU cores; the first time 27 s, to prepare MNIST and to compile
Result:  98.03 % of the test set, the mean over seeds 0 to 4 (97.94 to 98.13 %)
"""

from mnist_jax.config import Config

config = Config()
