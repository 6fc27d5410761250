"""The same network, trained in two epochs instead of five: better accuracy in 43 % of the time.

Command: python -m mnist_jax.train --config configs/fast.py
Time:    2.2 s of training on 2 CPU cores, 43 % of the default's time (median over ten seeds)
Result:  98.26 % test accuracy (mean over seeds 0 to 9; lowest 98.20, highest 98.37 %;
         standard deviation 0.06 points)

The learning rate starts higher and decays to 0. The settings were tuned on the last 10,000
training images (--validation-size 10000), never on the test set. See benchmarks/NOTES.md.
"""

from mnist_jax.config import Config

config = Config(learning_rate=6e-3, schedule="linear", warmup_steps=50, decay=0.97, num_epochs=2)
