"""The optimizer: from a Config to an optax.GradientTransformation."""

import functools
from typing import Any

import optax

from mnist_jax.config import Config
from mnist_jax.runtime.errors import UsageError


@functools.cache
def make_optimizer(config: Config, total_steps: int) -> optax.GradientTransformation:
    """The update rule of `config`, with a schedule over `total_steps`.

    Cached, because JAX compiles again for a static argument that is a different object.
    """
    learning_rate = make_schedule(config, total_steps)
    momentum = config.momentum or None
    adam: dict[str, Any] = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    match config.optimizer:
        case "rmsprop":
            # Hinton (2012), as in Keras 2: lr * g / (sqrt(v) + eps), v without bias correction.
            rms = {"decay": config.decay, "eps": config.eps, "eps_in_sqrt": config.eps_in_sqrt}
            return optax.rmsprop(learning_rate, **rms, momentum=momentum)
        case "adam":
            return optax.adam(learning_rate, **adam)
        case "adamw":
            return optax.adamw(learning_rate, **adam, weight_decay=config.weight_decay)
        case "sgd":
            return optax.sgd(learning_rate, momentum=momentum)


def make_schedule(config: Config, total_steps: int) -> optax.ScalarOrSchedule:
    """The learning rate: a number, or a function of the step, counted from 0.

    It rises linearly over `warmup_steps`. Then it is constant, or it falls to 0 at `total_steps`,
    linearly or along half a cosine (Loshchilov & Hutter, 2017).
    """
    peak, warmup_steps = config.learning_rate, config.warmup_steps
    if warmup_steps >= total_steps:
        raise UsageError(f"warmup_steps is {warmup_steps}, but the run has {total_steps} steps")
    if config.schedule == "constant" and not warmup_steps:
        return peak
    steps = total_steps - warmup_steps
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, steps),
        "cosine": optax.cosine_decay_schedule(peak, steps),
    }[config.schedule]
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])
