"""What the figures of an evaluation show, and the words that go with them."""

from typing import Any

import numpy as np

from mnist_jax.evaluation import Answers
from mnist_jax.figures import draw_digits, draw_learning_curves
from mnist_jax.model import MLP
from mnist_jax.report import Picture
from mnist_jax.result_figures import draw_confusion, draw_features, draw_mistakes, to_png
from mnist_jax.trained import NUM_PIXELS, Trained

NUM_MISTAKES, NUM_EACH = 12, 10


def draw_pictures(trained: Trained, evaluation: dict[str, Any], test: Answers) -> list[Picture]:
    """The pictures that there can be: of a first epoch there are no curves, for example."""
    pictures = [
        curves_picture(trained, evaluation),
        confusion_picture(evaluation),
        mistakes_picture(test),
        features_picture(trained),
        examples_picture(test),
    ]
    return [picture for picture in pictures if picture]


def curves_picture(trained: Trained, evaluation: dict[str, Any]) -> Picture | None:
    """Running training accuracy and that on the split looked at after each epoch, and the gap."""
    history = trained.history
    if not history:
        return None
    split = "validation" if "validation_accuracy" in history[0] else "test"
    running, held_out = (
        np.array([record[f"{name}_accuracy"] for record in history])
        for name in ("running_train", split)
    )
    train, test = evaluation["train_accuracy"], evaluation["test_accuracy"]
    final = trained.step / history[0]["step"], train, test
    labels = "running training accuracy", f"{split} accuracy"
    return Picture(
        "learning_curves",
        "Learning curves",
        "The running accuracy is over the examples of an epoch as they went by, when the network "
        "knew less; so it begins below. Where it is above, that is shaded. The black line is the "
        "gap of the final parameters: what they get right of the training set and do not of the "
        "test set.",
        f"Two lines over {len(history)} epochs: running training accuracy, from "
        f"{100 * running[0]:.2f} to {100 * running[-1]:.2f} %, and {split} accuracy, from "
        f"{100 * held_out[0]:.2f} to {100 * held_out[-1]:.2f} %. At the end "
        f"{100 * train:.2f} % of the training set and {100 * test:.2f} % of the test set.",
        to_png(draw_learning_curves(running, held_out, labels, final)),
    )


def confusion_picture(evaluation: dict[str, Any]) -> Picture:
    """The matrix; its numbers are a table of the report, too."""
    return Picture(
        "confusion",
        "What is taken for what",
        "A row is a class, a column what it was read as. Only the mistakes have a colour.",
        "The confusion matrix; the table below has its numbers.",
        to_png(draw_confusion(np.array(evaluation["confusion_matrix"]))),
    )


def mistakes_picture(test: Answers) -> Picture | None:
    """Those with the largest loss: where the network was surest, and wrong."""
    wrong = np.flatnonzero(test.predictions != test.labels)
    if not wrong.size:
        return None
    worst = wrong[np.argsort(-test.losses[wrong], kind="stable")][:NUM_MISTAKES]
    images, labels = test.images[worst].reshape(-1, 28, 28), test.labels[worst]
    pairs = zip(labels, test.predictions[worst], strict=True)
    return Picture(
        "mistakes",
        "The worst mistakes",
        f"Of {len(wrong):,}, those with the largest loss: the label got the least probability.",
        f"{len(worst)} images. Labels, and what they were read as: "
        f"{', '.join(f'{label} as {read}' for label, read in pairs)}.",
        to_png(draw_mistakes(images, test.probabilities[worst], labels)),
    )


def features_picture(trained: Trained) -> Picture | None:
    """The first layer's weights, if it is one of pixels: another model's may be anything."""
    if not isinstance(trained.model, MLP):
        return None
    return Picture(
        "features",
        "What the first layer looks for",
        "The weights of the units with the largest outgoing weights: ink on blue excites a unit, "
        "ink on red inhibits it. Where no image has ink, they are still those that it began with.",
        "Weights as images, on a scale from red, negative, to blue, positive: short strokes and "
        "edges amid noise.",
        to_png(draw_features(trained.params)),
    )


def examples_picture(test: Answers) -> Picture:
    """The first few test images of each class; paper, where a class has fewer."""
    num_classes = test.probabilities.shape[1]
    table = np.zeros((num_classes, NUM_EACH, NUM_PIXELS), np.float32)
    for label in range(num_classes):
        found = test.images[test.labels == label][:NUM_EACH]
        table[label, : len(found)] = found
    return Picture(
        "examples",
        "What it was asked",
        f"The first {NUM_EACH} images of each class in the test set.",
        f"{num_classes} rows of {NUM_EACH} images, a row a class.",
        to_png(draw_digits(table.reshape(num_classes, NUM_EACH, 28, 28))),
    )
