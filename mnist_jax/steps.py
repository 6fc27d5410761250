"""The training itself: pure functions of arrays. No I/O, no files, no loop over epochs."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from mnist_jax.metrics import Metrics, batch_metrics
from mnist_jax.model import predict_logits


class TrainState(NamedTuple):
    """All that training changes: arrays only."""

    step: Int[Array, ""]
    params: PyTree[Float[Array, "..."]]
    opt_state: optax.OptState


class Examples(NamedTuple):
    """Images with pixels in [0, 1], and their labels."""

    images: Float[Array | np.ndarray, "examples pixels"]
    labels: Int[Array | np.ndarray, " examples"]


class Batch(NamedTuple):
    """Some examples, and which of them count."""

    images: Float[Array, "batch pixels"]
    labels: Int[Array, " batch"]
    mask: Bool[Array, " batch"]


@functools.partial(jax.jit, static_argnames=("num_pixels", "model", "tx"))
def init_state(
    key: PRNGKeyArray, num_pixels: int, *, model: nn.Module, tx: optax.GradientTransformation
) -> TrainState:
    """The state before the first step."""
    params = model.init(key, jnp.zeros((1, num_pixels)))["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def loss_fn(params: PyTree, batch: Batch, model: nn.Module) -> tuple[Float[Array, ""], Metrics]:
    """The mean cross-entropy over the valid examples of `batch`, and the sums behind it."""
    logits = predict_logits(params, batch.images, model=model)
    metrics = batch_metrics(logits, batch.labels, batch.mask)
    return metrics.loss_sum / metrics.count.astype(jnp.float32), metrics


def train_step(
    state: TrainState, batch: Batch, *, model: nn.Module, tx: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """One update. The metrics are of the parameters before it, as Keras shows them.

    This is the only definition of a step: `train_steps` loops over it on the device.
    """
    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, model)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), metrics


def take_batch(examples: Examples, rows: Int[Array, " batch"]) -> Batch:
    """The examples in `rows`; a row of -1 is padding, which the mask leaves out."""
    taken = jnp.maximum(rows, 0)
    return Batch(examples.images[taken], examples.labels[taken], rows >= 0)


@functools.partial(jax.jit, static_argnames=("model", "tx"), donate_argnames=("state", "metrics"))
def train_steps(
    state: TrainState,
    metrics: Metrics,
    examples: Examples,
    order: Int[Array | np.ndarray, "steps batch"],
    start: Int[Array, ""] | int,
    stop: Int[Array, ""] | int,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """A chunk of an epoch: for each `start <= i < stop`, a `train_step` on the rows `order[i]`.

    It compiles once whatever the length of the chunk, and computes bit for bit what a Python
    loop over `train_step` does. The memory of `state` and `metrics` is reused (donated).

    Args:
        state, metrics: as the chunk before left them, or `init_state` and `empty_metrics`.
        order: the rows that each step of the epoch takes, padded with -1.
    """

    def body(i: Int[Array, ""], carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, metrics = carry
        state, new = train_step(state, take_batch(examples, order[i]), model=model, tx=tx)
        return state, _set_entry(metrics, i, new)

    return jax.lax.fori_loop(start, stop, body, (state, metrics))


@functools.partial(jax.jit, static_argnames="model")
def evaluate(
    params: PyTree,
    examples: Examples,
    order: Int[Array | np.ndarray, "batches batch"],
    *,
    model: nn.Module,
) -> Metrics:
    """The metrics of each batch of `order`, in which every example counts once, padding (-1) never.

    Batches of nothing but padding, at the end, cost nothing: splits of unequal size can share
    one shape of `order`, and so one compilation.
    """

    def body(i: Int[Array, ""], metrics: Metrics) -> Metrics:
        return _set_entry(metrics, i, loss_fn(params, take_batch(examples, order[i]), model)[1])

    num_batches = jnp.any(order >= 0, axis=1).sum()
    return jax.lax.fori_loop(0, num_batches, body, empty_metrics(len(order)))


def empty_metrics(num_batches: int) -> Metrics:
    """The metrics of `num_batches` batches that have not run yet: zeros."""
    zeros = functools.partial(jnp.zeros, num_batches)
    return Metrics(zeros(jnp.float32), zeros(jnp.int32), zeros(jnp.int32))


def _set_entry(metrics: Metrics, i: Int[Array, ""], new: Metrics) -> Metrics:
    return jax.tree.map(lambda entries, entry: entries.at[i].set(entry), metrics, new)
