"""From a Config to an optax.GradientTransformation."""

from typing import Any

import optax

from mnist_jax.config import Config
from mnist_jax.errors import ConfigError


def make_optimizer(config: Config, total_steps: int) -> optax.GradientTransformation:
    """The update rule of `config`; its schedule, if any, ends after `total_steps`.

    Build it once a run: it is a static argument of the compiled functions, and a second one,
    equal in all but identity, would make them compile again.
    """
    learning_rate = make_schedule(config, total_steps)
    momentum = config.momentum or None
    adam: dict[str, Any] = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    match config.optimizer:
        case "rmsprop":
            # Hinton (2012), as Keras 2 has it: lr * g / (sqrt(v) + eps), v from 0, uncorrected.
            rms = {"decay": config.decay, "eps": config.eps, "eps_in_sqrt": config.eps_in_sqrt}
            return optax.rmsprop(learning_rate, **rms, momentum=momentum)
        case "adam":
            return optax.adam(learning_rate, **adam)
        case "adamw":
            return optax.adamw(learning_rate, **adam, weight_decay=config.weight_decay)
        case "sgd":
            return optax.sgd(learning_rate, momentum=momentum)


def make_schedule(config: Config, total_steps: int) -> optax.ScalarOrSchedule:
    """The learning rate: a number, or a function of the step (0 is the first).

    It rises linearly from 0 over `warmup_steps`, then stays, or falls to 0 at `total_steps`
    along a line or half a cosine (Loshchilov & Hutter, 2017).
    """
    peak, steps = config.learning_rate, total_steps - config.warmup_steps
    if steps <= 0:
        raise ConfigError(
            f"warmup_steps is {config.warmup_steps}; it must be below the run's {total_steps} steps"
        )
    if config.schedule == "constant" and not config.warmup_steps:
        return peak
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, steps),
        "cosine": optax.cosine_decay_schedule(peak, steps),
    }[config.schedule]
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])
