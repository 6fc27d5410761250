"""Losses, gradients and steps against the oracle, finite differences and Keras."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import datasets
from mnist_jax.config import Config
from mnist_jax.input_pipeline import batch_rows, normalize
from mnist_jax.metrics import Metrics, summarize
from mnist_jax.model import MLP, make_model
from mnist_jax.optimizer import make_optimizer
from mnist_jax.steps import (
    Batch,
    Examples,
    TrainState,
    empty_metrics,
    evaluate,
    init_state,
    loss_fn,
    train_step,
    train_steps,
)
from tests import oracle
from tests.small import (
    CLASSES,
    EXAMPLES,
    IMAGES,
    LABELS,
    MODEL,
    PIXELS,
    STATIC,
    jit_step,
    new_state,
)
from tests.test_optimizer import RULES

KERAS_2 = [
    2.336015224456787, 1.80220365524292, 1.5192642211914062, 1.1391695737838745,
    1.1259236335754395, 0.9794821739196777, 0.8565449714660645, 0.8050017356872559,
    0.7601919174194336, 0.8479984998703003,
]  # fmt: skip
jit_grad = jax.jit(jax.grad(loss_fn, has_aux=True), static_argnums=2)


def full_batch() -> Batch:
    return Batch(*EXAMPLES, mask=jnp.ones(50, bool))


def to_float64(tree: Any) -> Any:
    return jax.tree.map(np.float64, tree)


@pytest.mark.parametrize("hidden_sizes", [(), (16,), (9, 5)])
def test_gradients_are_the_oracles(hidden_sizes: tuple[int, ...]) -> None:
    model = MLP(hidden_sizes, num_classes=CLASSES)
    state = new_state(model=model)
    mask = np.arange(50) % 3 > 0
    batch = Batch(*EXAMPLES, mask=jnp.asarray(mask))
    grads, _ = jit_grad(state.params, batch, model)
    expected = oracle.gradients(to_float64(state.params), IMAGES[mask], LABELS[mask])
    chex.assert_trees_all_close(to_float64(grads), expected, atol=1e-7, rtol=1e-5)


def test_oracles_gradients_are_central_differences() -> None:
    params = to_float64(new_state().params)
    grads = oracle.gradients(params, IMAGES, LABELS)
    for layer, leaves in params.items():
        for name, leaf in leaves.items():
            numeric = np.zeros_like(leaf)
            for index in np.ndindex(leaf.shape):
                value = leaf[index]
                leaf[index] = value + 1e-5
                above = oracle.loss(params, IMAGES, LABELS)
                leaf[index] = value - 1e-5
                below = oracle.loss(params, IMAGES, LABELS)
                leaf[index] = value
                numeric[index] = (above - below) / 2e-5
            np.testing.assert_allclose(grads[layer][name], numeric, atol=1e-9)


@pytest.mark.usefixtures("standard_dtypes")
@pytest.mark.parametrize(("config", "rule", "hyperparameters"), RULES.values(), ids=RULES.keys())
def test_one_step_of_each_optimizer_is_the_oracles(
    config: Config, rule: Callable[..., np.ndarray], hyperparameters: dict[str, Any]
) -> None:
    tx = make_optimizer(config, total_steps=10)
    before = new_state(tx=tx)
    after, metrics = jit_step(before, full_batch(), model=MODEL, tx=tx)
    params = to_float64(before.params)
    grads = oracle.gradients(params, IMAGES, LABELS)
    expected = jax.tree.map(lambda p, g: rule(p, g, {}, lr=0.01, **hyperparameters), params, grads)
    # Parameters are below 1, where float32 is exact to 6e-8. The rules divide by the gradient's
    # own root, so that its relative error, 1e-6 where it almost cancels, is that of the step.
    chex.assert_trees_all_close(to_float64(after.params), expected, rtol=0, atol=5e-7)
    logits, _ = oracle.forward(params, IMAGES)
    loss = oracle.cross_entropy(logits, LABELS).sum()
    np.testing.assert_allclose(metrics.loss_sum, loss, rtol=1e-6)
    assert metrics.correct == (logits.argmax(axis=1) == LABELS).sum()
    assert (after.step, metrics.count) == (1, 50)


def test_loss_at_initialization_is_near_that_of_guessing() -> None:
    model = make_model(Config())
    images = np.random.default_rng(0).random((500, 784), np.float32)
    examples = Examples(jnp.asarray(images), jnp.arange(500) % 10)
    params = init_state(jax.random.key(0), 784, **{**STATIC, "model": model}).params
    order = batch_rows(np.arange(500), 100)
    loss = summarize(evaluate(params, examples, order, model=model)).loss
    # Logits of variance s add about s / 2 to the loss of guessing; here s is about 0.4.
    assert math.log(10) < loss < math.log(10) + 0.4


def follow(
    params: oracle.Tree, examples: Examples, order: np.ndarray, model: MLP
) -> tuple[np.ndarray, np.ndarray]:
    """The mean loss of each batch in RMSprop training: the package's and the oracle's.

    This is how another program's run is repeated: its initial weights go into the TrainState, the
    rows of its batches into `order`, short ones padded with -1.
    """
    tx = make_optimizer(Config(), total_steps=len(order))
    placed = jax.tree.map(jnp.asarray, params)
    state = TrainState(jnp.zeros((), jnp.int32), placed, tx.init(placed))
    metrics = empty_metrics(len(order))
    _, metrics = train_steps(state, metrics, examples, order, 0, len(order), model=model, tx=tx)
    expected = oracle.train(params, examples.images, examples.labels, order)
    return np.asarray(metrics.loss_sum) / np.asarray(metrics.count), np.array(expected)


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
    rng = np.random.default_rng(0)
    kernels = [
        rng.uniform(-bound, bound, shape).astype(np.float32)
        for shape in ((784, 512), (512, 10))
        for bound in [(6 / sum(shape)) ** 0.5]
    ]
    biases = [np.zeros(512, np.float32), np.zeros(10, np.float32)]
    order = rng.permutation(60_000)[:1280].reshape(10, 128).astype(np.int32)
    images, labels = (
        datasets.read_idx(manual_dir / f"train-{name}-ubyte.gz")
        for name in ("images-idx3", "labels-idx1")
    )
    examples = Examples(jnp.asarray(normalize(images)), jnp.asarray(labels.astype(np.int32)))
    params = {
        f"Dense_{i}": {"kernel": kernel, "bias": bias}
        for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True))
    }
    losses, expected = follow(params, examples, order, make_model(Config()))
    # Seen: 6e-8 and 1.3e-7. On GPUs and TPUs too, matmul_precision makes float32 of the products.
    np.testing.assert_allclose(losses, KERAS_2, atol=1e-6)
    np.testing.assert_allclose(losses, expected, atol=1e-6)


@pytest.mark.slow
def test_step_without_jit_agrees_to_rounding() -> None:
    with jax.disable_jit():
        plain = train_step(new_state(), full_batch(), **STATIC)
    compiled = jit_step(new_state(), full_batch(), **STATIC)
    chex.assert_trees_all_close(plain, compiled, rtol=1e-5, atol=5e-7)


def test_two_seeds_under_vmap_agree_with_two_runs_to_rounding() -> None:
    def one_step(key: jax.Array) -> tuple[TrainState, Metrics]:
        return train_step(init_state(key, PIXELS, **STATIC), full_batch(), **STATIC)

    keys = jax.random.split(jax.random.key(0))
    both = jax.jit(jax.vmap(one_step))(keys)
    for i, key in enumerate(keys):
        one = jax.tree.map(lambda x, i=i: x[i], both)
        chex.assert_trees_all_close(one, jax.jit(one_step)(key), rtol=1e-5, atol=5e-7)
