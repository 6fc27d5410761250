"""The loss and the sums that loss and accuracy come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.metrics import Metrics, batch_metrics, cross_entropy, summarize
from tests import oracle

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(6, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0, 1], np.int32)


def test_cross_entropy_by_hand() -> None:
    # softmax of (ln 1, ln 2, ln 5) is (1, 2, 5) / 8
    losses = cross_entropy(jnp.log(jnp.array([[1.0, 2.0, 5.0]] * 2)), jnp.array([1, 2]))
    np.testing.assert_allclose(losses, [np.log(4), np.log(8 / 5)], rtol=1e-6)


def test_integer_labels_equal_one_hot_ones() -> None:
    losses = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_allclose(losses, oracle.cross_entropy(LOGITS, LABELS), rtol=1e-5)


def test_huge_logits_neither_overflow_nor_underflow() -> None:
    logits = jnp.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
    labels = jnp.array([0, 1])
    losses, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels).sum())(logits)
    np.testing.assert_allclose(losses, 0.0 + 2e4)
    np.testing.assert_array_equal(gradient, [[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]])


@pytest.mark.parametrize("labels", [jnp.zeros((6, 1), int), jnp.zeros(1, int), jnp.zeros(5, int)])
def test_labels_that_would_broadcast_are_refused(labels: jnp.ndarray) -> None:
    with pytest.raises(Exception, match=r"Type-check error|rank|shape"):
        cross_entropy(jnp.asarray(LOGITS), labels)


def test_masked_examples_do_not_count() -> None:
    mask = np.array([True, False, True, True, False, True])
    sums = batch_metrics(jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(mask))
    losses = oracle.cross_entropy(LOGITS[mask], LABELS[mask])
    np.testing.assert_allclose(sums.loss_sum, losses.sum(), rtol=1e-6)
    assert sums.correct == (LOGITS[mask].argmax(axis=1) == LABELS[mask]).sum()
    assert sums.count == 4


def test_summary_adds_in_float64_and_weighs_examples_not_batches() -> None:
    # In float32 the small losses would vanish beside the large one.
    losses, correct, count = [2.0**24, 1.0, 1.0, 1.0], [1, 2, 3, 0], [4, 4, 4, 3]
    summary = summarize(Metrics(jnp.array(losses), jnp.array(correct), jnp.array(count)))
    assert summary.loss == (2**24 + 3) / 15
    assert (summary.accuracy, summary.correct, summary.count) == (6 / 15, 6, 15)
