"""The training itself: pure functions of arrays, without I/O. Read this first."""

import functools
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from mnist_jax.data.pipeline import Batch, Examples, take_batch
from mnist_jax.model import predict_logits


class TrainState(NamedTuple):
    """Everything that training changes: only arrays."""

    step: Int[Array, ""]
    params: PyTree[Float[Array, "..."]]
    opt_state: optax.OptState


class Metrics(NamedTuple):
    """Sums over the valid examples of a batch; for several batches, the first axis is the batch."""

    loss_sum: Float[Array, "*batches"]
    correct: Int[Array, "*batches"]
    num_examples: Int[Array, "*batches"]


def split_seed(seed: int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """The keys for the initial parameters and for the orders of the epochs."""
    init_key, order_key = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
    return init_key, order_key


@functools.partial(jax.jit, static_argnames=("num_pixels", "model", "tx"))
def init_state(
    key: PRNGKeyArray, num_pixels: int, *, model: nn.Module, tx: optax.GradientTransformation
) -> TrainState:
    """The state before the first step."""
    params = model.init(key, jnp.zeros((1, num_pixels)))["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """-log softmax(logits)[label] of each example, in nats: Keras's categorical cross-entropy."""
    # With labels of shape [batch, 1] or [1], optax would broadcast silently.
    chex.assert_equal_shape_prefix([logits, labels], 1)
    chex.assert_rank(labels, 1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def loss_fn(params: PyTree, batch: Batch, model: nn.Module) -> tuple[Float[Array, ""], Metrics]:
    """The mean cross-entropy over the valid examples of a batch, and the sums behind it."""
    logits = predict_logits(params, batch.images, model=model)
    losses = jnp.where(batch.mask, cross_entropy(logits, batch.labels), 0.0)
    correct = batch.mask & (jnp.argmax(logits, axis=-1) == batch.labels)
    num_examples = batch.mask.sum(dtype=jnp.int32)
    metrics = Metrics(losses.sum(), correct.sum(dtype=jnp.int32), num_examples)
    return metrics.loss_sum / num_examples.astype(jnp.float32), metrics


def train_step(
    state: TrainState, batch: Batch, *, model: nn.Module, tx: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """One update. The metrics are those of the parameters before the update, as in Keras."""
    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, model)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), metrics


@functools.partial(jax.jit, static_argnames=("model", "tx"), donate_argnames="state")
def train_steps(
    state: TrainState,
    examples: Examples,
    rows: Int[Array, "steps batch"],
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """Runs one step for each row of `rows`. Returns the state and the metrics [steps].

    Bit for bit like a Python loop over `train_step`. The old state is lost: its memory is reused.
    """

    def step(state: TrainState, batch_rows: Int[Array, " batch"]) -> tuple[TrainState, Metrics]:
        return train_step(state, take_batch(examples, batch_rows), model=model, tx=tx)

    return jax.lax.scan(step, state, rows)


@functools.partial(jax.jit, static_argnames="model")
def evaluate(
    params: PyTree, examples: Examples, rows: Int[Array, "batches batch"], *, model: nn.Module
) -> Metrics:
    """The metrics [batches] of all batches of `rows`. Padding (-1) is not counted."""

    def step(_: None, batch_rows: Int[Array, " batch"]) -> tuple[None, Metrics]:
        return None, loss_fn(params, take_batch(examples, batch_rows), model)[1]

    return jax.lax.scan(step, None, rows)[1]
