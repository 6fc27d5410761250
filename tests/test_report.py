"""The report and the pictures of `evaluate`: what they hold, and that they hold nothing else."""

import base64
import errno
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image

from mnist_jax import pictures
from mnist_jax.commands import evaluate
from mnist_jax.commands.options import EvaluateOptions
from mnist_jax.config import load_config
from mnist_jax.evaluation import Answers
from mnist_jax.pictures import (
    confusion_picture,
    curves_picture,
    examples_picture,
    features_picture,
    mistakes_picture,
)
from mnist_jax.report import Picture, format_pairs
from mnist_jax.train import Result, train_and_evaluate
from mnist_jax.trained import load_trained
from mnist_jax.workdir import lock_folder

pytestmark = pytest.mark.usefixtures("tests_cache")
NAMES = ["learning_curves", "confusion", "mistakes", "features", "examples"]
VOID = {"meta", "img"}  # elements that HTML does not close


class Page(HTMLParser):
    """What a page holds; fails on elements that are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def folder(sample_run: Result, tests_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has been evaluated."""
    copy = Path(shutil.copytree(sample_run.workdir, tmp_path_factory.mktemp("report") / "a <run>"))
    assert evaluate.run(EvaluateOptions(copy)) == 0
    return copy


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def test_every_image_is_in_the_page_and_in_the_folder(folder: Path, page: Page) -> None:
    assert sorted(path.stem for path in (folder / "figures").iterdir()) == sorted(NAMES)
    for name, image in zip(NAMES, page.images, strict=True):
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert data == (folder / "figures" / f"{name}.png").read_bytes()
        opened = Image.open(io.BytesIO(data))
        opened.load()
        assert opened.size == pytest.approx(
            (2 * int(image["width"]), 2 * int(image["height"])), abs=1
        )
        assert len(image["alt"]) > 30


def test_the_page_asks_for_nothing_from_anywhere(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text()
    assert text.startswith("<!doctype html>\n")
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ("name", "viewport") in page.attributes


def test_its_numbers_are_those_of_the_evaluation(page: Page, evaluation: dict[str, Any]) -> None:
    summary, classes, confusion = page.tables[:3]
    shown = dict(summary)
    accuracy, correct = evaluation["test_accuracy"], evaluation["test_correct"]
    assert shown["Test accuracy"].startswith(f"{100 * accuracy:.2f} % ({correct:,} of 1,000), 95 %")
    assert shown["Test loss"] == f"{evaluation['test_loss']:.4f}"
    gap = 100 * (evaluation["train_accuracy"] - accuracy)
    assert shown["Gap"] == f"{gap:.2f} points of overfitting"
    for i, (row, scores) in enumerate(zip(classes[1:], evaluation["classes"], strict=True)):
        ratios = (f"{100 * scores[name]:.2f}" for name in ("precision", "recall"))
        assert row == [str(i), *ratios, str(scores["count"])]
    numbers = [[int(cell or 0) for cell in row[1:]] for row in confusion[1:]]
    assert numbers == evaluation["confusion_matrix"]


def test_the_training_set_is_evaluated_as_the_run_has_done_it(
    sample_run: Result, evaluation: dict[str, Any]
) -> None:
    assert evaluation["train_correct"] == sample_run.train.correct
    assert evaluation["train_count"] == 4000
    assert evaluation["train_loss"] == pytest.approx(sample_run.train.loss, rel=1e-5)


def test_the_page_tells_of_the_run_and_its_settings(
    folder: Path, page: Page, sample_run: Result
) -> None:
    run, settings = (dict(table) for table in page.tables[3:])
    record = json.loads((folder / "run.json").read_text())
    assert run["Folder"] == str(folder)  # with its <>, escaped
    assert run["Dataset"] == "mnist_sample: 4,000 train, 1,000 test"
    for part in (record["mnist_jax"], f"jax {record['jax']}", record["devices"]):
        assert part in run["Trained with"]
    command = ["python", "-m", "mnist_jax", "evaluate", "--workdir", str(folder)]
    assert shlex.split(run["Made by"]) == command
    config = vars(load_config(folder / "config.json"))
    assert settings == {name: str(value) for name, value in config.items()}


def test_the_curves_are_those_of_the_run(page: Page, sample_run: Result) -> None:
    text = page.images[0]["alt"]
    first, last = sample_run.history
    for record in (first, last):
        for name in ("running_train_accuracy", "test_accuracy"):
            assert f"{100 * record[name]:.2f}" in text
    assert f"{100 * sample_run.train.accuracy:.2f} % of the training set" in text


def test_the_run_goes_on_all_the_same(folder: Path, sample_run: Result) -> None:
    config = load_config(folder / "config.json")
    os.close(lock_folder(folder, config))
    result = train_and_evaluate(config, folder)
    assert result.test == sample_run.test
    assert (folder / "report.html").exists()


def test_without_matplotlib_there_are_the_numbers(
    sample_run: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    copy = Path(shutil.copytree(sample_run.workdir, tmp_path / "run"))
    assert evaluate.run(EvaluateOptions(copy)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if 'pip install -e ".[figures]"' in line]) == 1
    assert not (copy / "figures").exists()
    page = Page((copy / "report.html").read_text())
    assert (len(page.images), len(page.tables)) == (0, 5)
    assert (copy / "evaluation.json").exists()


@pytest.fixture
def one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pictures are in the way of the time that a test takes: one, which takes none."""
    image = io.BytesIO()
    Image.new("L", (2, 2)).save(image, "PNG")
    picture = Picture("mistakes", "", "", "", image.getvalue())
    monkeypatch.setattr(pictures, "draw_pictures", lambda *_: [picture])


@pytest.mark.usefixtures("one_picture")
@pytest.mark.parametrize("name", ["evaluation.json", "mistakes.png", "report.html"])
def test_a_full_disk_leaves_no_half_of_a_file(
    name: str,
    sample_run: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Path(shutil.copytree(sample_run.workdir, tmp_path / "run"))
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    assert evaluate.run(EvaluateOptions(copy)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"{name} cannot be written: No space left on device")
    assert not list(copy.rglob(name))


@pytest.mark.usefixtures("one_picture")
def test_figures_that_are_a_file_are_refused(
    sample_run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(sample_run.workdir, tmp_path / "run"))
    (copy / "figures").touch()
    assert evaluate.run(EvaluateOptions(copy)) == 1
    assert "figures cannot be written: File exists" in capsys.readouterr().err


def test_the_worst_mistake_is_the_surest() -> None:
    """Images 1 and 2 are mistakes; of 2 the label has the least probability."""
    probabilities = np.array([[0.1, 0.9], [0.6, 0.4], [0.05, 0.95]])
    labels = np.array([1, 1, 0])
    losses = -np.log(probabilities[range(3), labels])
    picture = mistakes_picture(Answers(np.zeros((3, 784)), labels, losses, probabilities))
    assert picture is not None
    assert picture.text.endswith("read as: 0 as 1, 1 as 0.")
    assert picture.caption.startswith("Of 2,")
    right = Answers(np.zeros((1, 784)), labels[:1], losses[:1], probabilities[:1])
    assert mistakes_picture(right) is None
    assert examples_picture(right).png  # though class 0 has no image, and class 1 only one


def test_another_network_has_no_picture_of_its_features(sample_run: Result) -> None:
    trained = load_trained(sample_run.workdir)
    assert features_picture(trained._replace(model=nn.Dense(10))) is None
    assert features_picture(trained) is not None


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures keep their Figure, to be looked into."""
    monkeypatch.setattr(pictures, "to_png", lambda figure: figure)


def axes_of(picture: Any) -> list[Any]:
    assert picture is not None
    return picture.png.axes


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.usefixtures("undrawn")
def test_the_curves_are_drawn_from_the_history(split: str, sample_run: Result) -> None:
    """Where there is a validation set, it is what was looked at after each epoch."""
    history = [
        {"step": step, "running_train_accuracy": running, f"{split}_accuracy": held_out}
        for step, running, held_out in ((10, 0.6, 0.5), (20, 0.7, 0.65))
    ]
    trained = load_trained(sample_run.workdir)._replace(history=history, step=20)
    (axes,) = axes_of(curves_picture(trained, {"train_accuracy": 0.9, "test_accuracy": 0.8}))
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    expected = {
        "running training accuracy": [[1, 60], [2, 70]],
        f"{split} accuracy": [[1, 50], [2, 65]],
        "final parameters: training set, test set": [[2, 90], [2, 80]],
    }
    assert [*lines] == [*expected]
    for name, points in expected.items():
        np.testing.assert_allclose(lines[name], points)


@pytest.mark.usefixtures("undrawn")
def test_the_images_are_those_of_the_examples() -> None:
    """Image i is of the grey i / 4: which is where can be seen."""
    probabilities = np.array([[0.1, 0.9], [0.6, 0.4], [0.05, 0.95], [0.7, 0.3]])
    labels = np.array([1, 1, 0, 0])
    images = np.repeat(np.arange(4) / 4, 784).reshape(4, 784)
    losses = -np.log(probabilities[range(4), labels])
    answers = Answers(images, labels, losses, probabilities)
    worst, second, *_ = axes_of(mistakes_picture(answers))
    for axes, grey, title in (
        (worst, 0.5, "read as 1: 95.0 %\nlabel 0: 5.0 %"),
        (second, 0.25, "read as 0: 60.0 %\nlabel 1: 40.0 %"),
    ):
        np.testing.assert_array_equal(axes.images[0].get_array(), np.full((28, 28), grey))
        assert axes.get_title() == title
    (axes,) = axes_of(examples_picture(answers))
    middles = axes.images[0].get_array()[15::30, 15::30]  # of 30 x 30 with the space between
    np.testing.assert_array_equal(middles[:, :3], [[0.5, 0.75, 0], [0, 0.25, 0]])


@pytest.mark.usefixtures("undrawn")
def test_the_matrix_and_the_weights_are_drawn_as_they_are(sample_run: Result) -> None:
    (axes,) = axes_of(confusion_picture({"confusion_matrix": [[5, 2], [0, 1200]]}))
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "5", (1, 0): "2", (1, 1): "1,200"}  # column, row
    trained = load_trained(sample_run.workdir)
    first = axes_of(features_picture(trained))[0]
    kernel, outgoing = (np.asarray(trained.params[f"Dense_{i}"]["kernel"]) for i in (0, 1))
    unit = int(np.argmax((outgoing**2).sum(axis=1)))
    assert first.get_title() == str(unit)
    np.testing.assert_array_equal(first.images[0].get_array().ravel(), kernel[:, unit])


def test_text_is_escaped() -> None:
    assert "<td>&lt;b&gt; &amp; &quot;c&quot;</td>" in format_pairs({"name": '<b> & "c"'})
