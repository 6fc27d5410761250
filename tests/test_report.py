"""The report and the figures of `evaluate`: what they contain, and that nothing is loaded."""

import base64
import dataclasses
import html
import importlib.util
import io
import json
import re
import shutil
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image

from mnist_jax.commands import evaluate
from mnist_jax.config import load_config
from mnist_jax.inference import report
from mnist_jax.inference.evaluation import Evaluation, Predictions, evaluate_run
from mnist_jax.inference.predictor import Predictor
from mnist_jax.train import Result, train_and_evaluate
from tests.helpers import call

pytestmark = pytest.mark.usefixtures("tests_cache")
FIGURES = ["learning_curves", "confusion", "mistakes", "features", "examples"]


def read_tables(page: str) -> list[list[list[str]]]:
    """The cells of the tables of an HTML page."""
    tables = []
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
        tables.append([[html.unescape(cell) for cell in row] for row in rows])
    return tables


@pytest.fixture
def folder(sample_run: Result, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_run.workdir, tmp_path / "run"))


@pytest.fixture(scope="module")
def page(evaluated_run: Path) -> str:
    return (evaluated_run / "report.html").read_text()


def test_every_figure_is_a_file_and_in_the_page(evaluated_run: Path, page: str) -> None:
    assert sorted(path.stem for path in (evaluated_run / "figures").iterdir()) == sorted(FIGURES)
    images = re.findall(r'<img alt=".+" width="(\d+)" src="(.+)">', page)
    for name, (width, source) in zip(FIGURES, images, strict=True):
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        assert data == (evaluated_run / "figures" / f"{name}.png").read_bytes()
        assert Image.open(io.BytesIO(data)).width // 2 == int(width)


def test_the_page_loads_nothing(page: str) -> None:
    text = re.sub(r"base64,[^\"]*", "", page)
    assert text.startswith("<!doctype html>\n")
    assert not re.search(r"https?:|url\(|@import|//[a-z]|href=|srcset=| on\w+=", text)
    assert not re.search("<(script|link|iframe|object|embed|base|form)", text)
    assert set(re.findall(r'src="(.*?)"', text)) == {"data:image/png;"}


def test_the_numbers_of_the_page_are_those_of_the_evaluation(
    evaluated_run: Path, page: str
) -> None:
    evaluation = json.loads((evaluated_run / "evaluation.json").read_text())
    results, classes, confusion = read_tables(page)[:3]
    shown = dict(results)
    accuracy, correct = evaluation["test_accuracy"], evaluation["test_correct"]
    assert shown["Test accuracy"].startswith(f"{100 * accuracy:.2f} % ({correct:,} of 1,000), 95 %")
    assert shown["Test loss"] == f"{evaluation['test_loss']:.4f}"
    gap = 100 * (evaluation["train_accuracy"] - accuracy)
    assert shown["Gap"] == f"{gap:.2f} points of overfitting"
    for i, (row, scores) in enumerate(zip(classes[1:], evaluation["classes"], strict=True)):
        precision, recall = 100 * scores["precision"], 100 * scores["recall"]
        assert row == [str(i), f"{precision:.2f}", f"{recall:.2f}", str(scores["count"])]
    numbers = [[int(cell or 0) for cell in row[1:]] for row in confusion[1:]]
    assert numbers == evaluation["confusion_matrix"]


def test_the_page_describes_the_run_and_its_settings(evaluated_run: Path, page: str) -> None:
    run, settings = (dict(table) for table in read_tables(page)[3:])
    record = json.loads((evaluated_run / "run.json").read_text())
    assert run["Run directory"] == str(evaluated_run)  # its name contains <>, which must be escaped
    assert run["Dataset"] == "mnist_sample: 4,000 train, 1,000 test"
    for part in (record["mnist_jax"], f"jax {record['jax']}", record["devices"]):
        assert part in run["Trained with"]
    config = vars(load_config(evaluated_run / "config.json"))
    assert settings == {name: str(value) for name, value in config.items()}


def test_an_evaluated_run_can_be_resumed(folder: Path, sample_run: Result) -> None:
    (folder / "report.html").touch()
    result = train_and_evaluate(load_config(folder / "config.json"), folder)
    assert result.test == sample_run.test
    assert (folder / "report.html").exists()


def test_without_matplotlib_the_report_has_only_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    assert call(evaluate, "--workdir", folder) == 0
    assert 'pip install -e ".[figures]"' in capsys.readouterr().out
    assert not (folder / "figures").exists()
    page = (folder / "report.html").read_text()
    assert ("<img" in page, len(read_tables(page))) == (False, 5)
    assert (folder / "evaluation.json").exists()


@pytest.mark.parametrize("name", ["evaluation.json", "figures", "report.html"])
def test_an_output_that_cannot_be_written_is_named(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "draw_figures", lambda *_: {})  # to save time
    if name == "figures":
        (folder / name).touch()
    else:
        (folder / name).mkdir()
    assert call(evaluate, "--workdir", folder) == 1
    assert f"{name} cannot be written: " in capsys.readouterr().err


# What the figures are drawn from. ---------------------------------------------------------------


PROBABILITIES = np.array([[0.1, 0.9], [0.6, 0.4], [0.05, 0.95], [0.7, 0.3]])
LABELS = np.array([1, 1, 0, 0])
TEST = Predictions(
    images=np.repeat(np.arange(4) / 4, 784).reshape(4, 784),  # image i has the grey level i / 4
    labels=LABELS,
    losses=-np.log(PROBABILITIES[range(4), LABELS]),
    probabilities=PROBABILITIES,
)


@pytest.fixture(scope="module")
def evaluation(predictor: Predictor) -> Evaluation:
    return evaluate_run(predictor, TEST, TEST)


def test_the_worst_mistakes_have_the_largest_loss() -> None:
    """Images 1 and 2 are mistakes. Image 2 has the lower probability of the label."""
    assert report.worst_mistakes(TEST).tolist() == [2, 1]
    assert report.worst_mistakes(TEST, number=1).tolist() == [2]


def test_the_first_images_of_each_class_are_shown() -> None:
    levels = report.first_images(TEST)[:, :3, 0, 0]
    np.testing.assert_array_equal(levels, [[0.5, 0.75, 0], [0, 0.25, 0]])


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_learning_curves_are_those_of_the_history(
    split: str, predictor: Predictor, evaluation: Evaluation
) -> None:
    """With a validation split, each epoch is evaluated on it, not on the test set."""
    history = [
        {"step": step, "running_train_accuracy": running, f"{split}_accuracy": held_out}
        for step, running, held_out in ((10, 0.6, 0.5), (20, 0.7, 0.65))
    ]
    predictor = dataclasses.replace(predictor, history=history, step=25)
    curves = report.learning_curves(predictor, evaluation)
    assert (curves["train"].tolist(), curves["test"].tolist()) == ([0.6, 0.7], [0.5, 0.65])
    assert curves["labels"] == ("running training accuracy", f"{split} accuracy")
    assert curves["final"] == (2.5, 0.5, 0.5)


def test_the_figures_show_the_predictions_and_the_parameters(
    predictor: Predictor, evaluation: Evaluation
) -> None:
    drawn = report.draw_figures(predictor, evaluation, TEST)
    assert [*drawn] == FIGURES
    worst, second, *_ = drawn["mistakes"].axes
    assert worst.get_title() == "read as 1: 95.0 %\nlabel 0: 5.0 %"
    assert second.get_title() == "read as 0: 60.0 %\nlabel 1: 40.0 %"
    np.testing.assert_array_equal(worst.images[0].get_array(), np.full((28, 28), 0.5))
    kernel = np.asarray(predictor.params["Dense_0"]["kernel"])
    first = drawn["features"].axes[0]
    weights = kernel[:, int(first.get_title())]
    np.testing.assert_array_equal(first.images[0].get_array().ravel(), weights)


def test_figures_that_do_not_apply_are_left_out(
    predictor: Predictor, evaluation: Evaluation
) -> None:
    """Without a full epoch, without mistakes, and with a model that is not an MLP."""
    predictor = dataclasses.replace(predictor, history=[], model=nn.Dense(10))
    correct = Predictions(TEST.images[:1], LABELS[:1], TEST.losses[:1], PROBABILITIES[:1])
    assert [*report.draw_figures(predictor, evaluation, correct)] == ["confusion", "examples"]
