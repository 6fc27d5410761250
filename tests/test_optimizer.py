"""The update rules and the schedules, against the oracle and numbers computed by hand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnist_jax.config import Config
from mnist_jax.optimizer import make_optimizer, make_schedule
from tests import oracle

RULES = [
    ("rmsprop", oracle.rmsprop, {}),
    ("rmsprop", oracle.rmsprop, {"eps": 1e-3, "eps_in_sqrt": True}),
    ("rmsprop", oracle.rmsprop, {"decay": 0.8, "momentum": 0.7}),
    ("sgd", oracle.sgd, {"momentum": 0.9}),
    ("adam", oracle.adam, {"b1": 0.8, "b2": 0.99, "eps": 1e-4}),
    ("adamw", oracle.adam, {"weight_decay": 0.1}),
]


@pytest.mark.usefixtures("standard_dtypes")
@pytest.mark.parametrize(("optimizer", "rule", "settings"), RULES)
def test_a_hundred_updates_match_the_oracle(
    optimizer: Any, rule: Callable[..., np.ndarray], settings: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    # Gradients of all magnitudes, also rare and vanishing ones: there epsilon matters.
    grads = rng.normal(size=(100, 50)) * 10.0 ** rng.uniform(-9, 1, size=50)
    grads *= rng.random((100, 50)) < 0.5
    expected = rng.normal(size=50)
    config = Config(optimizer=optimizer, learning_rate=0.01, **settings)
    tx = make_optimizer(config, total_steps=100)
    params = jnp.asarray(expected, jnp.float32)
    opt_state, memory = tx.init(params), {}
    update = jax.jit(tx.update)
    for grad in grads.astype(np.float32):
        updates, opt_state = update(grad, opt_state, params)
        params = optax.apply_updates(params, updates)
        expected = rule(expected, grad.astype(np.float64), memory, lr=0.01, **settings)
    np.testing.assert_allclose(params, expected, rtol=2e-5, atol=2e-6)


def test_the_first_step_of_the_lessons_rmsprop_by_hand() -> None:
    # v = 0.1 * 4e-14 and sqrt(v) = 6.3e-8. With epsilon inside the root, sqrt(v + eps) = 3.2e-4.
    tx = make_optimizer(Config(), total_steps=1)
    param, grad = jnp.array([1.0]), jnp.array([2e-7])
    updates, _ = tx.update(grad, tx.init(param), param)
    np.testing.assert_allclose(updates, [-1e-3 * 2e-7 / (0.1**0.5 * 2e-7 + 1e-7)], rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "warmup", "points"),
    [
        ("constant", 10, {0: 0.0, 5: 0.25, 10: 0.5, 99: 0.5}),
        ("linear", 20, {0: 0.0, 10: 0.25, 20: 0.5, 60: 0.25, 100: 0.0}),
        ("cosine", 0, {0: 0.5, 25: 0.25 * (1 + 0.5**0.5), 50: 0.25, 100: 0.0}),
        ("cosine", 20, {0: 0.0, 19: 0.475, 20: 0.5, 60: 0.25, 100: 0.0}),
    ],
)
def test_a_schedule_has_the_right_values_at_its_corners(
    schedule: Any, warmup: int, points: dict[int, float]
) -> None:
    config = Config(learning_rate=0.5, schedule=schedule, warmup_steps=warmup)
    rate = make_schedule(config, total_steps=100)
    for step, expected in points.items():
        actual = rate(step) if callable(rate) else rate
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7, err_msg=f"step {step}")


def test_the_optimizer_follows_its_schedule() -> None:
    config = Config(optimizer="sgd", learning_rate=1.0, schedule="linear")
    tx = make_optimizer(config, total_steps=4)
    opt_state, taken = tx.init(jnp.zeros(1)), []
    for _ in range(4):
        updates, opt_state = tx.update(jnp.ones(1), opt_state, jnp.zeros(1))
        taken.append(float(-updates[0]))
    np.testing.assert_allclose(taken, [1.0, 0.75, 0.5, 0.25])


def test_equal_configs_share_one_optimizer_so_that_jax_compiles_once() -> None:
    assert make_optimizer(Config(seed=3), 7) is make_optimizer(Config(seed=3), 7)
    assert make_optimizer(Config(seed=3), 7) is not make_optimizer(Config(seed=3), 8)
