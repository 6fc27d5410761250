"""What must hold of any input."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnist_jax.input_pipeline import batch_rows, epoch_order
from mnist_jax.metrics import summarize
from mnist_jax.steps import Batch, empty_metrics, loss_fn, train_steps
from tests.small import CLASSES, EXAMPLES, MODEL, PIXELS, STATIC, jit_step, new_state

BATCH = 8
jit_grad = jax.jit(jax.grad(loss_fn, has_aux=True), static_argnums=2)

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
def test_masked_examples_have_no_influence_whatever_their_finite_pixels(
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
