"""How well a trained network does on each class."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from mnist_jax.config import NUM_CLASSES
from mnist_jax.data.pipeline import Dataset
from mnist_jax.inference.predictor import Predictor
from mnist_jax.runtime.metric_writer import Totals
from mnist_jax.steps import cross_entropy


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions for all examples of a split; the losses are cross-entropies in nats."""

    images: Float[np.ndarray, "n pixels"]
    labels: Int[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n classes"]

    @property
    def classes(self) -> Int[np.ndarray, " n"]:
        """The most probable class of each example."""
        return self.probabilities.argmax(axis=1)

    def totals(self) -> Totals:
        """Sums over all examples, for loss and accuracy."""
        return Totals().add(self.losses, self.classes == self.labels, np.ones_like(self.labels))


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """How well the network does on one class. A fraction of nothing is None."""

    precision: float | None  # fraction of the predictions of this class that are correct
    recall: float | None  # fraction of the examples of this class that are correct
    count: int  # number of the examples of this class


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of a run. Interval, classes and confusion matrix are of the test set."""

    dataset: str
    step: int
    train: Totals
    test: Totals
    interval: tuple[float, float]
    classes: list[ClassScores]
    confusion_matrix: Int[np.ndarray, "classes classes"]

    def as_json(self) -> dict[str, Any]:
        """The object in evaluation.json."""
        return {
            "dataset": self.dataset,
            "step": self.step,
            **self.test.as_record("test"),
            **self.train.as_record("train"),
            "test_accuracy_interval_95": self.interval,
            "classes": [dataclasses.asdict(scores) for scores in self.classes],
            "confusion_matrix": self.confusion_matrix.tolist(),
        }


def predict_split(predictor: Predictor, dataset: Dataset, split: str) -> Predictions:
    """Predicts all examples of a split, in their order."""
    rows = np.asarray(dataset.splits[split])
    images, labels = (np.asarray(array)[rows] for array in dataset.examples)
    logits = predictor.logits(images)
    losses = cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    return Predictions(images, labels, np.asarray(losses), softmax(logits, axis=1))


def evaluate_run(predictor: Predictor, train: Predictions, test: Predictions) -> Evaluation:
    """Computes all results from the predictions for the training set and the test set."""
    totals, matrix = test.totals(), confusion_matrix(test.labels, test.classes)
    return Evaluation(
        dataset=predictor.config.dataset,
        step=predictor.step,
        train=train.totals(),
        test=totals,
        interval=accuracy_interval(totals.correct, totals.count),
        classes=score_classes(matrix),
        confusion_matrix=matrix,
    )


def confusion_matrix(
    labels: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], num_classes: int = NUM_CLASSES
) -> Int[np.ndarray, "classes classes"]:
    """Counts the examples of each class (row) that are predicted as each class (column)."""
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def score_classes(matrix: Int[np.ndarray, "classes classes"]) -> list[ClassScores]:
    """Precision, recall and count of each class, from the confusion matrix."""
    scores = []
    for i in range(len(matrix)):
        correct, predicted, count = int(matrix[i, i]), int(matrix[:, i].sum()), int(matrix[i].sum())
        precision = correct / predicted if predicted else None
        recall = correct / count if count else None
        scores.append(ClassScores(precision, recall, count))
    return scores


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of E. B. Wilson (1927), J. Am. Stat. Assoc. 22, 209-212."""
    from scipy import stats  # takes 0.7 s, which `--help` does not need

    low, high = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(low), float(high)
