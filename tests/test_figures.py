"""What the figures show, read from matplotlib's own objects."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from mnist_jax.inference import figures

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 28, 28)).astype(np.uint8)
DIGITS = figures.draw_digits(IMAGES.reshape(2, 3, 28, 28))
TRAIN, TEST = np.array([0.9, 0.95, 0.99]), np.array([0.89, 0.93, 0.935])
CURVES = figures.draw_learning_curves(TRAIN, TEST)
RUNNING = figures.draw_learning_curves(
    np.array([0.85, 0.95, 0.97]), TEST, ("running", "validation"), (3.5, 0.99, 0.94)
)
MATRIX = np.array([[950, 0, 3], [12, 1100, 0], [0, 1, 7]])
CONFUSION = figures.draw_confusion(MATRIX)
PREDICTIONS = figures.draw_predictions(
    IMAGES[:3], np.array([[0.00002, 0.99995, 0.00003], [0.2, 0.1, 0.7], [0.3, 0.6, 0.1]]),
    np.array([0, 1, 2]), columns=2,
)  # fmt: skip
KERNELS = RNG.normal(size=(784, 5)), RNG.normal(size=(5, 10))
TRAINED: Any = {"Dense_0": {"kernel": KERNELS[0]}, "Dense_1": {"kernel": KERNELS[1]}}
FEATURES = figures.draw_features(TRAINED, columns=2, rows=2)


def shown_image(axes: Axes) -> np.ndarray:
    (image,) = axes.images
    return np.asarray(image.get_array())


def test_images_are_shown_in_their_places() -> None:
    (axes,) = DIGITS.axes
    table = shown_image(axes)
    assert table.shape == (2 * 30, 3 * 30)
    for number, image in enumerate(IMAGES):
        top, left = 30 * (number // 3) + 1, 30 * (number % 3) + 1
        np.testing.assert_array_equal(table[top : top + 28, left : left + 28], image)
    assert table.sum(dtype=int) == IMAGES.sum(dtype=int)  # blank between the images


def legend_title(axes: Any) -> str:
    return axes.get_legend().get_title().get_text()


def test_learning_curves_show_accuracies_and_their_gap() -> None:
    (axes,) = CURVES.axes
    for line, accuracies in zip(axes.lines, (TRAIN, TEST), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        np.testing.assert_allclose(np.asarray(line.get_ydata()), 100 * accuracies)
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 2
    (gap,) = (path.vertices for path in axes.collections[0].get_paths())
    assert (np.asarray(gap)[:, 1].min(), np.asarray(gap)[:, 1].max()) == pytest.approx((89, 99))
    assert legend_title(axes) == "gap after the last epoch: 5.50 points"


def test_learning_curves_show_the_accuracies_of_the_final_parameters() -> None:
    (axes,) = RUNNING.axes
    np.testing.assert_allclose(axes.lines[2].get_xydata(), [[3.5, 99], [3.5, 94]])
    assert legend_title(axes) == "gap of the final parameters: 5.00 points"
    assert [line.get_label() for line in axes.lines[:2]] == ["running", "validation"]
    # The shaded area starts where the curves cross: at 5/3.
    corners = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    assert corners[:, 0].min() == pytest.approx(5 / 3)


def test_the_confusion_matrix_shows_counts_and_colours_mistakes() -> None:
    (axes,) = CONFUSION.axes
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    assert counts == {
        (0, 0): "950", (2, 0): "3", (0, 1): "12", (1, 1): "1,100", (1, 2): "1", (2, 2): "7",
    }  # fmt: skip
    np.testing.assert_array_equal(shown_image(axes), [[0, 0, 3], [12, 0, 0], [0, 1, 0]])
    assert axes.images[0].get_clim() == (0, 12)
    bottom, top = axes.get_ylim()
    assert bottom > top  # row 0 is on top


def test_every_count_is_readable_on_its_colour() -> None:
    """WCAG 2.1 asks for a contrast of at least 4.5."""

    def luminance(colour: Any) -> float:
        rgb = np.array(to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    (axes,) = figures.draw_confusion(np.arange(36).reshape(6, 6)).axes
    colours = axes.images[0].to_rgba(shown_image(axes))
    assert len(axes.texts) == 35
    for text in axes.texts:
        column, row = map(int, text.get_position())
        dark, light = sorted(map(luminance, (text.get_color(), colours[row, column][:3])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_predictions_show_both_probabilities_in_words() -> None:
    *panels, _ = PREDICTIONS.axes
    for axes, image in zip(panels, IMAGES, strict=False):
        np.testing.assert_array_equal(shown_image(axes), image)
    assert [axes.get_title() for axes in panels] == [
        "read as 1: > 99.9 %\nlabel 0: < 0.1 %",
        "read as 2: 70.0 %\nlabel 1: 10.0 %",
        "read as 1: 60.0 %\nlabel 2: 10.0 %",
    ]


def test_features_are_the_weights_of_the_most_important_units() -> None:
    expected = np.argsort(-(KERNELS[1] ** 2).sum(axis=1))[:4]
    *panels, _ = FEATURES.axes
    assert [axes.get_title() for axes in panels] == [str(unit) for unit in expected]
    largest = abs(KERNELS[0][:, expected]).max()
    for axes, unit in zip(panels, expected, strict=True):
        np.testing.assert_array_equal(shown_image(axes).ravel(), KERNELS[0][:, unit])
        assert axes.images[0].get_clim() == (-largest, largest)


def test_features_without_a_hidden_layer_are_the_classes() -> None:
    figure = figures.draw_features({"Dense_0": {"kernel": KERNELS[0]}}, rows=1)
    assert [axes.get_title() for axes in figure.axes[:6]] == ["0", "1", "2", "3", "4", ""]


ALL = [DIGITS, CURVES, RUNNING, CONFUSION, PREDICTIONS, FEATURES]


@pytest.mark.parametrize("figure", ALL)
def test_nothing_in_a_figure_is_cut_off(figure: Figure) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(figures.figure_to_png(figure))).convert("L"))
    assert pixels.shape == pytest.approx(200 * figure.get_size_inches()[::-1], abs=1)
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255
