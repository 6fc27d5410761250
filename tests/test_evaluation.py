"""`evaluate`: its numbers are those of scikit-learn, the oracle and the run itself."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from sklearn import metrics

from mnist_jax.commands import evaluate
from mnist_jax.data.pipeline import load_dataset
from mnist_jax.inference.evaluation import (
    accuracy_interval,
    confusion_matrix,
    predict_split,
    score_classes,
)
from mnist_jax.inference.predictor import Predictor, load_predictor
from mnist_jax.train import Result
from tests.helpers import call
from tests.oracle import cross_entropy, forward, softmax

pytestmark = pytest.mark.usefixtures("tests_cache")


def test_the_predictions_are_those_of_the_oracle(predictor: Predictor) -> None:
    dataset = load_dataset(predictor.config)
    predictions = predict_split(predictor, dataset, "test")
    images, labels = (np.asarray(array)[4000:] for array in dataset.examples)
    logits, _ = forward(jax.device_get(predictor.params), images)
    np.testing.assert_array_equal(predictions.labels, labels)
    np.testing.assert_allclose(predictions.probabilities, softmax(logits), atol=1e-5)
    np.testing.assert_allclose(predictions.losses, cross_entropy(logits, labels), atol=1e-4)


def test_the_scores_are_those_of_scikit_learn(sample_run: Result, evaluated_run: Path) -> None:
    found = json.loads((evaluated_run / "evaluation.json").read_text())
    predictor = load_predictor(evaluated_run)
    predictions = predict_split(predictor, load_dataset(predictor.config), "test")
    labels, classes = predictions.labels, predictions.classes
    report: Any = metrics.classification_report(labels, classes, output_dict=True)
    assert found["confusion_matrix"] == metrics.confusion_matrix(labels, classes).tolist()
    assert found["test_accuracy"] == pytest.approx(report["accuracy"])
    for i, scores in enumerate(found["classes"]):
        expected = report[str(i)]
        assert scores["precision"] == pytest.approx(expected["precision"])
        assert scores["recall"] == pytest.approx(expected["recall"])
        assert scores["count"] == expected["support"]
    # The run itself has evaluated both splits in other batches.
    for split, totals in (("train", sample_run.train), ("test", sample_run.test)):
        assert found[f"{split}_loss"] == pytest.approx(totals.loss, rel=1e-5)
        assert found[f"{split}_correct"] == totals.correct
        assert found[f"{split}_count"] == totals.count
    assert (found["dataset"], found["step"]) == ("mnist_sample", 64)


def test_a_class_without_predictions_or_examples_has_no_score() -> None:
    """Class 1 is never predicted, and class 2 has no examples."""
    matrix = confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 2, 0, 0]), num_classes=3)
    assert matrix.tolist() == [[1, 0, 1], [2, 0, 0], [0, 0, 0]]
    scores = [dataclasses.astuple(scores) for scores in score_classes(matrix)]
    assert scores == [(1 / 3, 1 / 2, 2), (None, 0.0, 2), (0.0, None, 0)]


@pytest.mark.parametrize(("correct", "count"), [(9803, 10_000), (0, 10), (10, 10), (81, 263)])
def test_the_interval_is_that_of_wilson(correct: int, count: int) -> None:
    """Newcombe (1998), table I, gives 0.2553 to 0.3662 for 81 of 263."""
    z, p = 1.959964, correct / count
    centre = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    low, high = accuracy_interval(correct, count)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    if (correct, count) == (81, 263):
        assert (low, high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_other_data_than_those_of_the_run_are_refused(
    sample_run: Result, sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "mnist_jax" / "mnist_sample.npz"
    cache.parent.mkdir()
    with np.load(sample_dir / "mnist_jax" / cache.name) as file:
        np.savez(cache, **{**file, "test_labels": file["test_labels"][::-1]})
    assert call(evaluate, "--workdir", sample_run.workdir, "--data-dir", tmp_path) == 1
    assert "crc32_of_examples" in capsys.readouterr().err
    assert not (sample_run.workdir / "evaluation.json").exists()


def test_a_run_on_mnist_is_not_evaluated_on_the_sample(
    sample_run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(sample_run.workdir, tmp_path / "run"))
    for name in ("config.json", "run.json"):
        path = folder / name
        path.write_text(path.read_text().replace('"mnist_sample"', '"mnist"'))
    directories = ("--data-dir", tmp_path, "--manual-dir", os.devnull)
    assert call(evaluate, "--workdir", folder, *directories) == 1
    assert "train-images-idx3-ubyte.gz is missing" in capsys.readouterr().err
