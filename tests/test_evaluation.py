"""The numbers of `evaluate`, against scikit-learn, the textbook and the run's own."""

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
from mnist_jax.commands.options import EvaluateOptions
from mnist_jax.evaluation import accuracy_interval, answer_split, confusion_matrix, score_classes
from mnist_jax.input_pipeline import load_dataset
from mnist_jax.train import Result
from mnist_jax.trained import load_trained
from tests.oracle import cross_entropy, forward, softmax

pytestmark = pytest.mark.usefixtures("tests_cache")


def test_what_it_says_of_each_image_is_what_the_oracle_says(sample_run: Result) -> None:
    trained = load_trained(sample_run.workdir)
    dataset = load_dataset(trained.config)
    answers = answer_split(trained, dataset, "test")
    images, labels = (np.asarray(x)[4000:] for x in dataset.examples)
    logits, _ = forward(jax.device_get(trained.params), images)
    np.testing.assert_array_equal(answers.labels, labels)
    np.testing.assert_allclose(answers.probabilities, softmax(logits), atol=1e-5)
    np.testing.assert_allclose(answers.losses, cross_entropy(logits, labels), atol=1e-4)


def test_the_scores_are_those_of_scikit_learn(
    sample_run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(sample_run.workdir, tmp_path / "run"))
    assert evaluate.run(EvaluateOptions(folder)) == 0
    table = capsys.readouterr().out
    found = json.loads((folder / "evaluation.json").read_text())
    trained = load_trained(folder)
    answers = answer_split(trained, load_dataset(trained.config), "test")
    labels, predictions = answers.labels, answers.predictions
    report: Any = metrics.classification_report(labels, predictions, output_dict=True)
    assert found["confusion_matrix"] == metrics.confusion_matrix(labels, predictions).tolist()
    assert found["test_accuracy"] == pytest.approx(report["accuracy"])
    for i, scores in enumerate(found["classes"]):
        expected = report[str(i)]
        assert scores["precision"] == pytest.approx(expected["precision"])
        assert scores["recall"] == pytest.approx(expected["recall"])
        assert scores["count"] == expected["support"]
        assert f"{100 * expected['precision']:.2f} │" in table
    # What the run itself has found, in other batches.
    assert found["test_loss"] == pytest.approx(sample_run.test.loss, rel=1e-5)
    assert found["test_correct"] == sample_run.test.correct
    assert (found["dataset"], found["step"]) == ("mnist_sample", 64)


def test_classes_that_are_never_met() -> None:
    """Worked out by hand: class 1 is never taken, class 2 never there."""
    matrix = confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 2, 0, 0]), num_classes=3)
    assert matrix.tolist() == [[1, 0, 1], [2, 0, 0], [0, 0, 0]]
    scores = [dataclasses.astuple(scores) for scores in score_classes(matrix)]
    assert scores == [(1 / 3, 1 / 2, 2), (None, 0.0, 2), (0.0, None, 0)]


@pytest.mark.parametrize(("correct", "count"), [(9803, 10_000), (0, 10), (10, 10), (81, 263)])
def test_the_interval_is_wilsons(correct: int, count: int) -> None:
    """His formula; for 81 of 263, Newcombe (1998), table I, has 0.2553 to 0.3662."""
    z, p = 1.959964, correct / count
    centre = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    low, high = accuracy_interval(correct, count)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    if (correct, count) == (81, 263):
        assert (low, high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_other_data_than_the_runs_are_refused(
    sample_run: Result, sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "mnist_jax" / "mnist_sample.npz"
    cache.parent.mkdir()
    with np.load(sample_dir / "mnist_jax" / cache.name) as file:
        np.savez(cache, **{**file, "test_labels": file["test_labels"][::-1]})
    assert evaluate.run(EvaluateOptions(sample_run.workdir, data_dir=tmp_path)) == 1
    assert "crc32_of_examples" in capsys.readouterr().err
    assert not (sample_run.workdir / "evaluation.json").exists()


def test_a_run_on_mnist_is_not_evaluated_on_the_sample(
    sample_run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(sample_run.workdir, tmp_path / "run"))
    for name in ("config.json", "run.json"):
        path = folder / name
        path.write_text(path.read_text().replace('"mnist_sample"', '"mnist"'))
    options = EvaluateOptions(folder, data_dir=tmp_path, manual_dir=Path(os.devnull))
    assert evaluate.run(options) == 1
    assert "train-images-idx3-ubyte.gz is missing" in capsys.readouterr().err
