"""The loss of each example, and sums from which loss and accuracy follow exactly."""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int


class Metrics(NamedTuple):
    """Sums over the valid examples of a batch; with a leading axis, one entry a batch.

    Sums, not means: batches of unequal size then add up to the mean over examples.
    """

    loss_sum: Float[Array, "*batches"]
    correct: Int[Array, "*batches"]
    count: Int[Array, "*batches"]  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a person reads: means over examples, and the counts that they come from."""

    loss: float
    accuracy: float
    correct: int
    count: int


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """-log softmax(logits)[label] of each example: Keras's categorical cross-entropy, in nats.

    Integer labels give the same number as one-hot ones, without the products with 0.
    """
    # Against labels of shape [batch, 1] or [1], optax would broadcast in silence.
    chex.assert_equal_shape_prefix([logits, labels], 1)
    chex.assert_rank(labels, 1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def batch_metrics(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], mask: Bool[Array, " batch"]
) -> Metrics:
    """The sums of one batch over the examples where `mask` is true."""
    losses = jnp.where(mask, cross_entropy(logits, labels), 0.0)
    correct = mask & (jnp.argmax(logits, axis=-1) == labels)
    return Metrics(losses.sum(), correct.sum(dtype=jnp.int32), mask.sum(dtype=jnp.int32))


def summarize(metrics: Metrics) -> Summary:
    """Adds up the sums of [batches] in float64, on the host, and divides by the count.

    Batches that have not run yet hold zeros. The array is the same however an epoch was cut into
    chunks, and so is its sum.
    """
    loss_sum = float(np.asarray(metrics.loss_sum, np.float64).sum())
    correct, count = int(np.asarray(metrics.correct).sum()), int(np.asarray(metrics.count).sum())
    return Summary(loss_sum / count, correct / count, correct, count)


def describe_accuracy(values: dict[str, Any], split: str) -> str:
    """In percent, and the counts that it comes from; as below, `values` are from `flatten`."""
    accuracy, correct, count = (values[f"{split}_{n}"] for n in ("accuracy", "correct", "count"))
    return f"{100 * accuracy:.2f} % ({correct:,} of {count:,})"


def describe_gap(values: dict[str, Any]) -> str:
    """How much better the network is on the training set, which it has seen."""
    gap = 100 * (values["train_accuracy"] - values["test_accuracy"])
    return f"{gap:.2f} points{' of overfitting' if gap > 0 else ''}"


def flatten(summaries: dict[str, Summary]) -> dict[str, float]:
    """Summaries by the names of their splits, as one JSON object: `test_accuracy`, ..."""
    return {
        f"{split}_{name}": value
        for split, summary in summaries.items()
        for name, value in dataclasses.asdict(summary).items()
    }
