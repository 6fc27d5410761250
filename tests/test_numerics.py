"""Every number against the oracle, and what must hold of any input."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnist_jax import datasets
from mnist_jax.config import Config
from mnist_jax.input_pipeline import batch_rows, epoch_order, normalize
from mnist_jax.metrics import summarize
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
from tests.test_optimizer import RULES

PIXELS, CLASSES, BATCH = 12, 4, 8
MODEL = MLP((16,), num_classes=CLASSES)
STATIC: dict[str, Any] = {"model": MODEL, "tx": make_optimizer(Config(), total_steps=100)}
RNG = np.random.default_rng(0)
IMAGES = RNG.random((50, PIXELS), np.float32)
LABELS = RNG.integers(0, CLASSES, 50).astype(np.int32)
EXAMPLES = Examples(jnp.asarray(IMAGES), jnp.asarray(LABELS))
KERAS_2 = [
    2.336015224456787, 1.80220365524292, 1.5192642211914062, 1.1391695737838745,
    1.1259236335754395, 0.9794821739196777, 0.8565449714660645, 0.8050017356872559,
    0.7601919174194336, 0.8479984998703003,
]  # fmt: skip
jit_step = jax.jit(train_step, static_argnames=("model", "tx"))
jit_grad = jax.jit(jax.grad(loss_fn, has_aux=True), static_argnums=2)


@pytest.fixture(autouse=True)
def strict_dtypes() -> Iterator[None]:
    """No silent promotion in the project's own functions (RMSprop passes; Adam does not)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


def new_state(seed: int = 0, model: MLP = MODEL, **static: Any) -> TrainState:
    return init_state(jax.random.key(seed), PIXELS, **{**STATIC, "model": model, **static})


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
    grads = jax.grad(loss_fn, has_aux=True)(state.params, batch, model)[0]
    expected = oracle.gradients(to_float64(state.params), IMAGES[mask], LABELS[mask])
    chex.assert_trees_all_close(to_float64(grads), expected, atol=1e-7, rtol=1e-5)


def test_oracles_gradients_are_central_differences() -> None:
    params = to_float64(new_state().params)
    grads = oracle.gradients(params, IMAGES, LABELS)
    for layer, leaves in params.items():
        for name, leaf in leaves.items():
            numeric = np.zeros_like(leaf)
            for index in np.ndindex(leaf.shape):
                value, losses = leaf[index], []
                for leaf[index] in (value + 1e-5, value - 1e-5):
                    losses.append(oracle.loss(params, IMAGES, LABELS))
                leaf[index] = value
                numeric[index] = (losses[0] - losses[1]) / 2e-5
            np.testing.assert_allclose(grads[layer][name], numeric, atol=1e-9)


@pytest.mark.parametrize(("config", "rule", "settings"), RULES.values(), ids=RULES.keys())
def test_one_step_of_each_optimizer_is_the_oracles(
    config: Config, rule: Callable[..., np.ndarray], settings: dict[str, Any]
) -> None:
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        tx = make_optimizer(config, total_steps=10)
        state, metrics = train_step(new_state(tx=tx), full_batch(), model=MODEL, tx=tx)
    before = to_float64(new_state().params)
    grads = oracle.gradients(before, IMAGES, LABELS)
    expected = jax.tree.map(lambda p, g: rule(p, g, {}, lr=0.01, **settings), before, grads)
    chex.assert_trees_all_close(to_float64(state.params), expected, rtol=1e-4, atol=2e-6)
    assert (state.step, metrics.count) == (1, 50)
    loss = oracle.loss(before, IMAGES, LABELS)
    np.testing.assert_allclose(metrics.loss_sum / 50, loss, rtol=1e-6)


def test_loss_at_initialization_is_near_that_of_guessing() -> None:
    model = make_model(Config())
    images = np.random.default_rng(0).random((500, 784), np.float32)
    examples = Examples(jnp.asarray(images), jnp.arange(500) % 10)
    params = init_state(jax.random.key(0), 784, **{**STATIC, "model": model}).params
    order = batch_rows(np.arange(500), 100)
    loss = summarize(evaluate(params, examples, order, model=model)).loss
    assert math.log(10) - 0.1 < loss < math.log(10) + 0.5


def follow(
    params: oracle.Tree, examples: Examples, order: np.ndarray, model: MLP
) -> tuple[np.ndarray, np.ndarray]:
    """The mean loss of each batch in RMSprop training: the package's and the oracle's.

    This is how another program's run is repeated: its initial weights go into the TrainState, the
    rows of its batches into `order`.
    """
    tx = make_optimizer(Config(), total_steps=len(order))
    placed = jax.tree.map(jnp.asarray, params)
    state = TrainState(jnp.zeros((), jnp.int32), placed, tx.init(placed))
    metrics = empty_metrics(len(order))
    _, metrics = train_steps(state, metrics, examples, order, 0, len(order), model=model, tx=tx)
    expected = oracle.train(params, examples.images, examples.labels, order)
    return np.asarray(metrics.loss_sum) / order.shape[1], np.array(expected)


def test_ten_steps_follow_the_oracle() -> None:
    order = np.random.default_rng(0).integers(0, 50, (10, BATCH)).astype(np.int32)
    params = jax.tree.map(np.asarray, new_state().params)
    losses, expected = follow(params, EXAMPLES, order, MODEL)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_ten_steps_on_mnist_follow_keras_2(manual_dir: Path) -> None:
    """The losses that TensorFlow 2.15's Keras gave from these weights, on these batches.

    model = Sequential([Dense(512, "relu"), Dense(10, "softmax")])
    model.compile(tf.keras.optimizers.legacy.RMSprop(), "categorical_crossentropy")
    model.build((None, 784)); model.set_weights([kernels[0], biases[0], kernels[1], biases[1]])
    [model.train_on_batch(images[rows], to_categorical(labels[rows], 10)) for rows in order]
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
    np.testing.assert_allclose(losses, KERAS_2, atol=1e-6)
    np.testing.assert_allclose(losses, expected, atol=1e-6)


def test_step_without_jit_and_under_vmap_agrees_to_rounding() -> None:
    states = [new_state(seed) for seed in (0, 1)]
    separate = [jit_step(state, full_batch(), **STATIC) for state in states]
    with jax.disable_jit():
        chex.assert_trees_all_close(
            train_step(states[0], full_batch(), **STATIC), separate[0], rtol=1e-5, atol=1e-6
        )
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *states)
    both = jax.vmap(lambda state: train_step(state, full_batch(), **STATIC))(stacked)
    for i, one in enumerate(separate):
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], both), one, rtol=1e-5, atol=1e-6
        )


batches = st.tuples(
    arrays(np.float32, (BATCH, PIXELS), elements=st.floats(0, 1, width=32)),
    arrays(np.int32, BATCH, elements=st.integers(0, CLASSES - 1)),
)


@given(batches, st.permutations(range(BATCH)))
@settings(deadline=None, max_examples=50)
def test_the_order_within_a_batch_does_not_matter(
    batch: tuple[np.ndarray, np.ndarray], permutation: list[int]
) -> None:
    images, labels = map(jnp.asarray, batch)
    mask = jnp.ones(BATCH, bool)
    rows = jnp.array(permutation)
    one, metrics = jit_grad(new_state().params, Batch(images, labels, mask), MODEL)
    other, metrics2 = jit_grad(new_state().params, Batch(images[rows], labels[rows], mask), MODEL)
    chex.assert_trees_all_close((one, metrics), (other, metrics2), rtol=1e-5, atol=1e-6)


@given(batches, arrays(np.float32, (BATCH, PIXELS), elements=st.floats(-1e6, 1e6, width=32)))
@settings(deadline=None, max_examples=50)
def test_masked_examples_have_no_influence_whatever_their_pixels(
    batch: tuple[np.ndarray, np.ndarray], noise: np.ndarray
) -> None:
    images, labels = batch
    mask = np.arange(BATCH) % 3 > 0
    noisy = np.where(mask[:, None], images, noise)
    a, b = (
        jit_step(new_state(), Batch(*map(jnp.asarray, (x, labels, mask))), **STATIC)
        for x in (images, noisy)
    )
    chex.assert_trees_all_equal(a, b)


@given(
    n=st.integers(1, 200), batch_size=st.integers(1, 64), seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
)  # fmt: skip
@settings(deadline=None, max_examples=25)
def test_an_epochs_order_is_a_permutation(n: int, batch_size: int, seed: int, epoch: int) -> None:
    order = epoch_order(jax.random.key(seed), epoch, n, batch_size)
    rows = order.ravel()
    assert order.shape == (math.ceil(n / batch_size), batch_size)
    assert sorted(rows[:n]) == list(range(n))
    assert (rows[n:] == -1).all()
    if n > 20:
        other = epoch_order(jax.random.key(seed), epoch + 1, n, batch_size)
        assert not np.array_equal(order, other)


@given(st.lists(st.integers(1, 6), min_size=7, max_size=7))
@settings(deadline=None, max_examples=20)
def test_no_chunking_changes_a_sum_or_a_parameter(lengths: list[int]) -> None:
    order = batch_rows(np.arange(50), BATCH)
    whole = train_steps(new_state(), empty_metrics(7), EXAMPLES, order, 0, 7, **STATIC)
    state, metrics, start = new_state(), empty_metrics(7), 0
    for length in lengths:
        stop = min(start + length, 7)
        state, metrics = train_steps(state, metrics, EXAMPLES, order, start, stop, **STATIC)
        start = stop
    chex.assert_trees_all_equal((state, metrics), whole)
    assert summarize(metrics) == summarize(whole[1])
