"""The train step, the compiled chunk and evaluation, on a small network and made-up images."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.input_pipeline import batch_rows
from mnist_jax.metrics import Metrics, summarize
from mnist_jax.model import MLP
from mnist_jax.steps import (
    Examples,
    TrainState,
    empty_metrics,
    evaluate,
    init_state,
    take_batch,
    train_steps,
)
from tests import oracle
from tests.small import EXAMPLES, IMAGES, LABELS, MODEL, STATIC, jit_step, new_state


def random_order(batch_size: int) -> np.ndarray:
    return batch_rows(np.random.default_rng(1).permutation(50), batch_size)


def run_chunks(order: np.ndarray, steps_per_chunk: int) -> tuple[TrainState, Metrics]:
    state, metrics = new_state(), empty_metrics(len(order))
    for start in range(0, len(order), steps_per_chunk):
        stop = min(start + steps_per_chunk, len(order))
        state, metrics = train_steps(state, metrics, EXAMPLES, order, start, stop, **STATIC)
    return state, metrics


def test_every_leaf_has_its_shape_and_dtype() -> None:
    state, metrics = jax.eval_shape(
        lambda: jit_step(new_state(), take_batch(EXAMPLES, jnp.arange(5)), **STATIC)
    )
    described = {
        jax.tree_util.keystr(path): f"{leaf.dtype}{leaf.shape}"
        for path, leaf in jax.tree.leaves_with_path((state, metrics))
    }
    layers = {
        "['Dense_0']['bias']": "float32(16,)",
        "['Dense_0']['kernel']": "float32(12, 16)",
        "['Dense_1']['bias']": "float32(4,)",
        "['Dense_1']['kernel']": "float32(16, 4)",
    }
    assert described == {
        "[0].step": "int32()",
        **{f"[0].params{name}": leaf for name, leaf in layers.items()},
        **{f"[0].opt_state[0].nu{name}": leaf for name, leaf in layers.items()},
        "[1].loss_sum": "float32()",
        "[1].correct": "int32()",
        "[1].count": "int32()",
    }
    assert jax.eval_shape(new_state) == state


def test_padding_of_a_batch_has_no_influence() -> None:
    rows = jnp.array([4, 9, 2])
    short, _ = jit_step(new_state(), take_batch(EXAMPLES, rows), **STATIC)
    padded, metrics = jit_step(
        new_state(), take_batch(EXAMPLES, jnp.array([4, -1, 9, 2, -1])), **STATIC
    )
    for with_padding, without in zip(*map(jax.tree.leaves, (padded, short)), strict=True):
        # Of the largest entry: where terms cancel, the rounding errors of the terms remain.
        atol = 1e-6 * float(jnp.abs(without).max())
        np.testing.assert_allclose(with_padding, without, rtol=1e-6, atol=atol)
    assert metrics.count == 3


@pytest.mark.parametrize("steps_per_chunk", [1, 3, 5, 100])
def test_chunks_and_a_plain_loop_agree_bit_for_bit(steps_per_chunk: int) -> None:
    order = random_order(batch_size=8)  # 6 whole batches and one of 2
    state, entries = new_state(), []
    for rows in order:
        state, new = jit_step(state, take_batch(EXAMPLES, jnp.asarray(rows)), **STATIC)
        entries.append(new)
    metrics = jax.tree.map(lambda *xs: jnp.stack(xs), *entries)
    chex.assert_trees_all_equal(run_chunks(order, steps_per_chunk), (state, metrics))
    assert summarize(metrics).count == 50


def test_training_reuses_the_memory_of_the_state_and_evaluation_does_not() -> None:
    order, state = random_order(10), new_state()
    evaluate(state.params, EXAMPLES, order, model=MODEL)
    train_steps(state, empty_metrics(5), EXAMPLES, order, 0, 5, **STATIC)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("batch_size", [1, 7, 10, 50, 64])
def test_evaluation_counts_every_example_once(batch_size: int) -> None:
    state = new_state()
    order = batch_rows(np.arange(5, 48), batch_size, num_batches=50)
    summary = summarize(evaluate(state.params, EXAMPLES, order, model=MODEL))
    images, labels = IMAGES[5:48], LABELS[5:48]
    logits, _ = oracle.forward(jax.tree.map(np.float64, state.params), images)
    losses = oracle.cross_entropy(logits, labels)
    np.testing.assert_allclose(summary.loss, losses.mean(), rtol=1e-6)
    assert (summary.correct, summary.count) == ((logits.argmax(1) == labels).sum(), 43)


@pytest.mark.parametrize("batch_size", [128, 100, 1000, 7])
def test_sixty_thousand_are_trained_on_and_ten_thousand_evaluated(batch_size: int) -> None:
    images = np.random.default_rng(2).random((70_000, 2), np.float32)
    examples = Examples(jnp.asarray(images), jnp.zeros(70_000, jnp.int32))
    static: dict[str, Any] = {**STATIC, "model": MLP((2,))}
    state = init_state(jax.random.key(0), 2, **static)
    order = batch_rows(np.random.default_rng(3).permutation(60_000), batch_size)
    test_order = batch_rows(np.arange(60_000, 70_000), batch_size)
    metrics = empty_metrics(len(order))
    state, metrics = train_steps(state, metrics, examples, order, 0, len(order), **static)
    assert summarize(metrics).count == 60_000
    assert state.step == -(-60_000 // batch_size)
    assert summarize(evaluate(state.params, examples, test_order, model=MLP((2,)))).count == 10_000


def test_another_key_gives_another_state() -> None:
    chex.assert_trees_all_equal(new_state(seed=1), new_state(seed=1))
    assert not np.array_equal(*(new_state(s).params["Dense_0"]["kernel"] for s in (0, 1)))
