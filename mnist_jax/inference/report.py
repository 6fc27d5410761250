"""The report of an evaluation: one HTML file without scripts and links."""

import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from jinja2 import Environment, StrictUndefined
from PIL import Image

from mnist_jax.inference.evaluation import Evaluation, Predictions
from mnist_jax.inference.predictor import Predictor
from mnist_jax.model import MLP
from mnist_jax.runtime.devices import describe_devices, package_versions
from mnist_jax.runtime.workdir import read_run_info

TEMPLATE = Path(__file__).with_name("report.html")
CLASS_COLUMNS = ["class", "precision, %", "recall, %", "images"]


def draw_figures(predictor: Predictor, evaluation: Evaluation, test: Predictions) -> dict[str, Any]:
    """Draws the figures of the report that apply to the run. Returns matplotlib Figures by name."""
    from mnist_jax.inference import figures  # needs matplotlib, which is optional

    drawn = {}
    if predictor.history:
        curves = learning_curves(predictor, evaluation)
        drawn["learning_curves"] = figures.draw_learning_curves(**curves)
    drawn["confusion"] = figures.draw_confusion(evaluation.confusion_matrix)
    worst = worst_mistakes(test)
    if worst.size > 0:
        images, labels = test.images[worst].reshape(-1, 28, 28), test.labels[worst]
        drawn["mistakes"] = figures.draw_predictions(images, test.probabilities[worst], labels)
    if isinstance(predictor.model, MLP):
        drawn["features"] = figures.draw_features(predictor.params)
    drawn["examples"] = figures.draw_digits(first_images(test))
    return drawn


def learning_curves(predictor: Predictor, evaluation: Evaluation) -> dict[str, Any]:
    """The arguments of `draw_learning_curves` for a run with at least one full epoch."""
    history = predictor.history
    split = "validation" if "validation_accuracy" in history[0] else "test"
    epochs = predictor.step / history[0]["step"]
    return {
        "train": np.array([record["running_train_accuracy"] for record in history]),
        "test": np.array([record[f"{split}_accuracy"] for record in history]),
        "labels": ("running training accuracy", f"{split} accuracy"),
        "final": (epochs, evaluation.train.accuracy, evaluation.test.accuracy),
    }


def worst_mistakes(predictions: Predictions, number: int = 12) -> Int[np.ndarray, " mistakes"]:
    """The indices of the mistakes with the largest loss, the largest first."""
    wrong = np.flatnonzero(predictions.classes != predictions.labels)
    return wrong[np.argsort(-predictions.losses[wrong], kind="stable")][:number]


def first_images(predictions: Predictions) -> Float[np.ndarray, "classes 10 28 28"]:
    """The first ten images of each class; blank if there are fewer."""
    images = np.zeros((predictions.probabilities.shape[1], 10, 28, 28), np.float32)
    for label in range(len(images)):
        found = predictions.images[predictions.labels == label][:10]
        images[label, : len(found)] = found.reshape(-1, 28, 28)
    return images


def format_report(predictor: Predictor, evaluation: Evaluation, pngs: dict[str, bytes]) -> str:
    """The HTML page. `pngs` maps names of figures to contents of PNG files."""
    figures = {}
    for name, png in pngs.items():  # shown at half of their pixels: sharp on any screen
        width = Image.open(io.BytesIO(png)).width // 2
        figures[name] = {"data": base64.b64encode(png).decode(), "width": width}
    run = read_run_info(predictor.workdir)
    confusion = confusion_rows(evaluation)
    environment = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    return environment.from_string(TEMPLATE.read_text()).render(
        title=f"{evaluation.dataset}: test accuracy {100 * evaluation.test.accuracy:.2f} %",
        results=summarize_results(evaluation).items(),
        figures=figures,
        num_mistakes=evaluation.test.count - evaluation.test.correct,
        classes=class_rows(evaluation),
        class_columns=CLASS_COLUMNS,
        confusion=confusion,
        confusion_columns=["class", *(row[0] for row in confusion)],
        predictor=predictor,
        run=run,
        sizes=", ".join(f"{run[s]:,} {s}" for s in ("train", "validation", "test") if s in run),
        here=package_versions("mnist_jax", "jax"),
        devices=describe_devices(),
        settings=dataclasses.asdict(predictor.config).items(),
    )


def summarize_results(evaluation: Evaluation) -> dict[str, str]:
    """Loss, accuracies and their gap as text."""
    train, test = evaluation.train, evaluation.test
    low, high = evaluation.interval
    gap = 100 * (train.accuracy - test.accuracy)
    return {
        "Test loss": f"{test.loss:.4f}",
        "Test accuracy": f"{test}, 95 % interval {100 * low:.2f} to {100 * high:.2f} %",
        "Accuracy on the training set": str(train),
        "Gap": f"{gap:.2f} points" + (" of overfitting" if gap > 0 else ""),
    }


def class_rows(evaluation: Evaluation) -> list[list[str]]:
    """The table of the scores, with CLASS_COLUMNS."""
    rows = []
    for i, scores in enumerate(evaluation.classes):
        percents = _percent(scores.precision), _percent(scores.recall)
        rows.append([str(i), *percents, f"{scores.count:,}"])
    return rows


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.2f}"


def confusion_rows(evaluation: Evaluation) -> list[list[str]]:
    """Each class, followed by its row of the confusion matrix; zeros are empty."""
    rows = []
    for i, counts in enumerate(evaluation.confusion_matrix.tolist()):
        rows.append([str(i), *(str(count) if count else "" for count in counts)])
    return rows
