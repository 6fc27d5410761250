"""The same network in two epochs instead of five: past the lesson's accuracy in 0.43 of the time.

Command: python -m mnist_jax.train --config configs/fast.py
Time:    0.43 of the default's training, the median over ten seeds in turns; 2.2 s on 2 CPU cores
Result:  98.26 % of the test set, the mean over seeds 0 to 9 (98.20 to 98.37 %, deviation 0.06)

Tuned on the last 10,000 training images (--validation-size 10000), never on the test set. A higher
rate that falls to 0 does it; see benchmarks/NOTES.md.
"""

from mnist_jax.config import Config

config = Config(learning_rate=6e-3, schedule="linear", warmup_steps=50, decay=0.97, num_epochs=2)
