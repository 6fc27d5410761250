"""The loss, the train step, chunks of steps, and evaluation: a small network, made-up images."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_jax.data.pipeline import Batch, batch_rows, take_batch
from mnist_jax.runtime.metric_writer import Totals
from mnist_jax.steps import TrainState, cross_entropy, evaluate, loss_fn, split_seed, train_steps
from tests import oracle
from tests.helpers import EXAMPLES, IMAGES, LABELS, MODEL, STATIC, jit_step, new_state, to_float64

ORDER = batch_rows(np.random.default_rng(1).permutation(50), 8)  # 6 whole batches and one of 2


def test_cross_entropy_by_hand() -> None:
    # softmax of (ln 1, ln 2, ln 5) is (1, 2, 5) / 8
    losses = cross_entropy(jnp.log(jnp.array([[1.0, 2.0, 5.0]] * 2)), jnp.array([1, 2]))
    np.testing.assert_allclose(losses, [np.log(4), np.log(8 / 5)], rtol=1e-6)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    logits = jnp.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
    labels = jnp.array([0, 1])
    losses, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels).sum())(logits)
    np.testing.assert_allclose(losses, 0.0 + 2e4)
    np.testing.assert_array_equal(gradient, [[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]])


@pytest.mark.parametrize("shape", [(6, 1), (1,), (5,)])
def test_cross_entropy_refuses_labels_that_would_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(Exception, match=r"Type-check error|rank|shape"):
        cross_entropy(jnp.zeros((6, 4)), jnp.zeros(shape, int))


def test_loss_is_the_mean_over_the_examples_that_are_not_masked() -> None:
    mask = np.arange(50) % 3 > 0
    noisy = jnp.where(mask[:, None], EXAMPLES.images, 1e6)  # masked examples must have no influence
    params, jit_loss = new_state().params, jax.jit(loss_fn, static_argnums=2)
    loss, metrics = jit_loss(params, Batch(noisy, EXAMPLES.labels, jnp.asarray(mask)), MODEL)
    params, images, labels = to_float64(params), IMAGES[mask], LABELS[mask]
    expected = oracle.loss(params, images, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics.loss_sum, expected * mask.sum(), rtol=1e-6)
    assert metrics.correct == (oracle.forward(params, images)[0].argmax(1) == labels).sum()
    assert metrics.num_examples == mask.sum()


def test_padding_of_a_batch_has_no_influence() -> None:
    short, _ = jit_step(new_state(), take_batch(EXAMPLES, jnp.array([4, 9, 2])), **STATIC)
    rows = jnp.array([4, -1, 9, 2, -1])
    padded, metrics = jit_step(new_state(), take_batch(EXAMPLES, rows), **STATIC)
    for with_padding, without in zip(*map(jax.tree.leaves, (padded, short)), strict=True):
        # Relative to the largest entry: where terms cancel, their rounding errors remain.
        atol = 1e-6 * float(jnp.abs(without).max())
        np.testing.assert_allclose(with_padding, without, rtol=1e-6, atol=atol)
    assert metrics.num_examples == 3


@pytest.fixture(scope="module")
def plain_loop() -> tuple[TrainState, Totals]:
    """The state and the totals after a Python loop over the steps of ORDER."""
    state, totals = new_state(), Totals()
    for rows in ORDER:
        state, metrics = jit_step(state, take_batch(EXAMPLES, jnp.asarray(rows)), **STATIC)
        totals = totals.add(*metrics)
    return state, totals


@given(lengths=st.lists(st.sampled_from([1, 3, 4]), min_size=7, max_size=7))
@settings(deadline=None, max_examples=20)
def test_chunks_of_any_size_and_a_plain_loop_agree_bit_for_bit(
    plain_loop: tuple[TrainState, Totals], lengths: list[int]
) -> None:
    state, totals, start = new_state(), Totals(), 0
    while start < len(ORDER):
        rows = ORDER[start:][: lengths.pop()]
        state, metrics = train_steps(state, EXAMPLES, rows, **STATIC)
        totals, start = totals.add(*metrics), start + len(rows)
    chex.assert_trees_all_equal(state, plain_loop[0])
    assert totals == plain_loop[1]
    assert totals.count == 50


def test_training_reuses_the_memory_of_the_state_and_evaluation_does_not() -> None:
    state = new_state()
    evaluate(state.params, EXAMPLES, ORDER, model=MODEL)
    train_steps(state, EXAMPLES, ORDER, **STATIC)  # fails if evaluation has deleted the parameters
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_counts_every_example_once(batch_size: int) -> None:
    params = new_state().params
    rows = batch_rows(range(5, 48), batch_size)
    totals = Totals().add(*evaluate(params, EXAMPLES, rows, model=MODEL))
    logits, _ = oracle.forward(to_float64(params), IMAGES[5:48])
    losses = oracle.cross_entropy(logits, LABELS[5:48])
    np.testing.assert_allclose(totals.loss, losses.mean(), rtol=1e-6)
    assert (totals.correct, totals.count) == ((logits.argmax(1) == LABELS[5:48]).sum(), 43)


def test_each_seed_has_its_own_keys_and_its_own_state() -> None:
    keys = [jax.random.key_data(key).tolist() for seed in (0, 1) for key in split_seed(seed)]
    assert all(keys.count(key) == 1 for key in keys)
    chex.assert_trees_all_equal(new_state(seed=1), new_state(seed=1))
    assert not np.array_equal(*(new_state(s).params["Dense_0"]["kernel"] for s in (0, 1)))
