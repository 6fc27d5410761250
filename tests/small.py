"""A small network, a few made-up images, and their compiled step, for the tests of the steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.config import Config
from mnist_jax.model import MLP
from mnist_jax.optimizer import make_optimizer
from mnist_jax.steps import Examples, TrainState, init_state, train_step

PIXELS, CLASSES = 12, 4
RNG = np.random.default_rng(0)
IMAGES = RNG.random((50, PIXELS), np.float32)
LABELS = RNG.integers(0, CLASSES, 50).astype(np.int32)
EXAMPLES = Examples(jnp.asarray(IMAGES), jnp.asarray(LABELS))
MODEL = MLP((16,), num_classes=CLASSES)
STATIC: dict[str, Any] = {"model": MODEL, "tx": make_optimizer(Config(), total_steps=100)}
jit_step = jax.jit(train_step, static_argnames=("model", "tx"))


def assert_first_step_alike(
    gradients: tuple[np.ndarray, np.ndarray], params: tuple[np.ndarray, np.ndarray]
) -> None:
    """Gradients agree to 1e-6 of the largest, and parameters after RMSprop's first step to 1e-6.

    But for those whose gradient nearly vanishes: the step divides it by its own size plus 1e-7,
    and so makes its rounding error ten thousand times larger.
    """
    scale = np.abs(gradients[0]).max()
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-6, atol=1e-6 * scale)
    clear = np.abs(gradients[0]) > 1e-3 * scale
    assert clear.mean() > 0.1
    np.testing.assert_allclose(params[1][clear], params[0][clear], rtol=1e-6, atol=1e-6)


def new_state(seed: int = 0, **static: Any) -> TrainState:
    return init_state(jax.random.key(seed), PIXELS, **{**STATIC, **static})
