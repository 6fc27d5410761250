"""How well a trained network does, class by class."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from mnist_jax.input_pipeline import Dataset
from mnist_jax.metrics import (
    Metrics,
    Summary,
    cross_entropy,
    describe_accuracy,
    describe_gap,
    flatten,
    summarize,
)
from mnist_jax.trained import Trained, apply_in_batches, jit_logits


class Answers(NamedTuple):
    """What the network says of each example."""

    images: Float[np.ndarray, "n pixels"]
    labels: Int[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    """In nats, as in training."""
    probabilities: Float[np.ndarray, "n classes"]

    @property
    def predictions(self) -> Int[np.ndarray, " n"]:
        """The likeliest class of each."""
        return self.probabilities.argmax(axis=1)


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """Of one class."""

    precision: float | None
    """How many of those that were taken for this class are of it; None if there were none."""
    recall: float | None
    """How many of those that are of this class were taken for it; None if there are none."""
    count: int
    """How many are of it."""


def answer_split(trained: Trained, dataset: Dataset, split: str) -> Answers:
    """What the network says of every example of a split, in its order."""
    rows = dataset.splits[split]
    images, labels = (np.asarray(x)[rows.start : rows.stop] for x in dataset.examples)
    logits = apply_in_batches(jit_logits, trained, images)
    losses = np.asarray(cross_entropy(jnp.asarray(logits), jnp.asarray(labels)))
    return Answers(images, labels, losses, np.asarray(jax.nn.softmax(logits)))


def summarize_answers(answers: Answers) -> Summary:
    """Loss and accuracy, as if each example were a batch."""
    correct = (answers.predictions == answers.labels).astype(np.int32)
    return summarize(Metrics(*map(jnp.asarray, (answers.losses, correct, np.ones_like(correct)))))


def confusion_matrix(
    labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], num_classes: int = 10
) -> Int[np.ndarray, "classes classes"]:
    """How many examples of each class (row) were taken for each class (column)."""
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def score_classes(matrix: Int[np.ndarray, "classes classes"]) -> list[ClassScores]:
    """Precision, recall and count of each class, from the confusion matrix."""

    def ratio(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    scores = zip(matrix.diagonal().tolist(), *(matrix.sum(k).tolist() for k in (0, 1)), strict=True)
    return [ClassScores(ratio(hit, took), ratio(hit, count), count) for hit, took, count in scores]


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, if the examples were drawn at random.

    That of E. B. Wilson (1927), Journal of the American Statistical Association 22, 209-212: it
    stays within 0 and 1, and is right for accuracies near them too.
    """
    low, high = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def to_json(trained: Trained, train: Answers, test: Answers) -> dict[str, Any]:
    """What evaluation.json holds: all that is shown, as tables or as a page."""
    summaries = {"test": summarize_answers(test), "train": summarize_answers(train)}
    matrix = confusion_matrix(test.labels, test.predictions)
    return {
        "dataset": trained.config.dataset,
        "step": trained.step,
        **flatten(summaries),
        "test_accuracy_interval_95": accuracy_interval(
            summaries["test"].correct, summaries["test"].count
        ),
        "classes": [vars(scores) for scores in score_classes(matrix)],
        "confusion_matrix": matrix.tolist(),
    }


def describe(evaluation: dict[str, Any]) -> dict[str, str]:
    """Loss, accuracies and their gap, in words; as all below, of what `to_json` gives."""
    low, high = evaluation["test_accuracy_interval_95"]
    return {
        "Test loss": f"{evaluation['test_loss']:.4f}",
        "Test accuracy": f"{describe_accuracy(evaluation, 'test')}, "
        f"95 % interval {100 * low:.2f} to {100 * high:.2f} %",
        "Accuracy on the training set": describe_accuracy(evaluation, "train"),
        "Gap": describe_gap(evaluation),
    }


CLASS_COLUMNS = "class", "precision, %", "recall, %", "images"


def class_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """Precision and recall of each class, in percent, as CLASS_COLUMNS."""

    def percent(ratio: float | None) -> str:
        return "-" if ratio is None else f"{100 * ratio:.2f}"

    return [
        [str(i), percent(of["precision"]), percent(of["recall"]), f"{of['count']:,}"]
        for i, of in enumerate(evaluation["classes"])
    ]


def confusion_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """The classes, and how many of each were taken for each; no number where there were none."""
    rows = enumerate(evaluation["confusion_matrix"])
    return [[str(i), *(f"{n}" if n else "" for n in row)] for i, row in rows]
