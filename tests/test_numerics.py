"""Losses, gradients and steps against the oracle, finite differences and Keras."""

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.config import Config
from mnist_jax.data.pipeline import Batch, Examples, batch_rows, normalize
from mnist_jax.data.tfds_builders import read_idx
from mnist_jax.model import MLP, make_model
from mnist_jax.optimizer import make_optimizer
from mnist_jax.steps import TrainState, loss_fn, train_steps
from tests import oracle
from tests.helpers import CLASSES, EXAMPLES, IMAGES, LABELS, MODEL, jit_step, new_state, to_float64

KERAS_2 = [
    2.336015224456787, 1.80220365524292, 1.5192642211914062, 1.1391695737838745,
    1.1259236335754395, 0.9794821739196777, 0.8565449714660645, 0.8050017356872559,
    0.7601919174194336, 0.8479984998703003,
]  # fmt: skip
BATCH = Batch(*EXAMPLES, mask=jnp.ones(50, bool))
jit_grad = jax.jit(jax.grad(loss_fn, has_aux=True), static_argnums=2)


@pytest.mark.parametrize("hidden_sizes", [(), (9, 5)])
def test_gradients_match_the_oracle(hidden_sizes: tuple[int, ...]) -> None:
    model = MLP(hidden_sizes, num_classes=CLASSES)
    params, mask = new_state(model=model).params, np.arange(50) % 3 > 0
    grads, _ = jit_grad(params, BATCH._replace(mask=jnp.asarray(mask)), model)
    expected = oracle.gradients(to_float64(params), IMAGES[mask], LABELS[mask])
    chex.assert_trees_all_close(to_float64(grads), expected, atol=1e-7, rtol=1e-5)


def test_the_oracles_gradients_are_central_differences() -> None:
    params, rng = to_float64(new_state().params), np.random.default_rng(0)
    grads = oracle.gradients(params, IMAGES, LABELS)
    for layer in params:
        for name in params[layer]:
            direction = rng.normal(size=params[layer][name].shape)
            params[layer][name] += 1e-5 * direction
            above = oracle.loss(params, IMAGES, LABELS)
            params[layer][name] -= 2e-5 * direction
            below = oracle.loss(params, IMAGES, LABELS)
            params[layer][name] += 1e-5 * direction
            slope = (grads[layer][name] * direction).sum()
            np.testing.assert_allclose((above - below) / 2e-5, slope, rtol=1e-7)


@pytest.mark.usefixtures("standard_dtypes")
def test_one_step_of_adamw_matches_the_oracle() -> None:
    config = Config(optimizer="adamw", learning_rate=0.01, weight_decay=0.1)
    tx = make_optimizer(config, total_steps=10)
    before = new_state(tx=tx)
    after, _ = jit_step(before, BATCH, model=MODEL, tx=tx)
    params = to_float64(before.params)
    grads = oracle.gradients(params, IMAGES, LABELS)
    expected = jax.tree.map(
        lambda p, g: oracle.adam(p, g, {}, lr=0.01, weight_decay=0.1), params, grads
    )
    # Parameters are below 1, where float32 is exact to 6e-8. A gradient that almost cancels has a
    # relative error of 1e-6. The rule divides by its own root, so the step has the same error.
    chex.assert_trees_all_close(to_float64(after.params), expected, rtol=0, atol=5e-7)
    assert after.step == 1


def follow(
    params: oracle.Tree, examples: Examples, order: np.ndarray, model: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The mean loss of each batch in RMSprop training: the package's and the oracle's.

    This repeats a run of another program: `params` are its initial weights, `order` holds the rows
    of its batches, and short batches are padded with -1.
    """
    tx = make_optimizer(Config(), total_steps=len(order))
    placed = jax.tree.map(jnp.asarray, params)
    state = TrainState(jnp.zeros((), jnp.int32), placed, tx.init(placed))
    _, metrics = train_steps(state, examples, order, model=model, tx=tx)
    expected = oracle.train(params, *map(np.asarray, examples), order)
    return np.asarray(metrics.loss_sum) / np.asarray(metrics.num_examples), np.array(expected)


def test_ten_steps_follow_the_oracle() -> None:
    order = batch_rows(np.random.default_rng(0).integers(0, 50, 78), 8)  # the last has 6 rows
    params = jax.tree.map(np.asarray, new_state().params)
    losses, expected = follow(params, EXAMPLES, order, MODEL)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)  # seen: 1.5e-7


def test_ten_steps_on_mnist_follow_keras_2(manual_dir: Path) -> None:
    """The losses that TensorFlow 2.15's Keras gave from these weights, on these batches.

    model = Sequential([Dense(512, "relu"), Dense(10, "softmax")])
    model.compile(tf.keras.optimizers.legacy.RMSprop(), "categorical_crossentropy")
    model.build((None, 784)); model.set_weights([kernels[0], biases[0], kernels[1], biases[1]])
    x, y = normalize(images), to_categorical(labels, 10)
        [model.train_on_batch(x[rows], y[rows]) for rows in order]
    """
    rng, params = np.random.default_rng(0), {}
    for name, shape in {"Dense_0": (784, 512), "Dense_1": (512, 10)}.items():
        bound = (6 / sum(shape)) ** 0.5
        kernel = rng.uniform(-bound, bound, shape).astype(np.float32)
        params[name] = {"kernel": kernel, "bias": np.zeros(shape[1], np.float32)}
    order = rng.permutation(60_000)[:1280].reshape(10, 128).astype(np.int32)
    images = read_idx(manual_dir / "train-images-idx3-ubyte.gz")
    labels = read_idx(manual_dir / "train-labels-idx1-ubyte.gz").astype(np.int32)
    examples = Examples(jnp.asarray(normalize(images)), jnp.asarray(labels))
    losses, expected = follow(params, examples, order, make_model(Config()))
    # Seen on a CPU: 6e-8 and 1.3e-7. matmul_precision gives float32 products on GPUs, too.
    np.testing.assert_allclose(losses, KERAS_2, atol=1e-6)
    np.testing.assert_allclose(losses, expected, atol=1e-6)
