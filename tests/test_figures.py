"""What the figures show, read back from matplotlib's own objects."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from PIL import Image

from mnist_jax import figures

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 28, 28)).astype(np.uint8)
DIGITS = figures.draw_digits(IMAGES.reshape(2, 3, 28, 28))
PROBABILITIES = np.array([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]], np.float32)
PREDICTIONS = figures.draw_predictions(IMAGES[:2], PROBABILITIES, np.array([1, 2]))
PARAMS: Any = {
    f"Dense_{i}": {"kernel": np.zeros(shape), "bias": np.zeros(shape[1])}
    for i, shape in enumerate([(784, 512), (512, 10)])
}
NETWORK = figures.draw_network(PARAMS)
TRAIN, TEST = np.array([0.9, 0.95, 0.99]), np.array([0.89, 0.93, 0.935])
CURVES = figures.draw_learning_curves(TRAIN, TEST)
X = np.linspace(-1, 1, 5)
FUNCTIONS = figures.draw_functions(X, {"square": X**2, "cube": X**3}, xlabel="number")
DESCENT = figures.draw_descent((X, X**2), (X[:2], X[:2] ** 2))
IMAGE = figures.draw_image(IMAGES[0], title="label: 5")


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_digits_are_all_there_and_in_their_places() -> None:
    (axes,) = DIGITS.axes
    table = np.asarray(axes.images[0].get_array())
    assert table.shape == (2 * 30, 3 * 30)
    for number, image in enumerate(IMAGES):
        top, left = 30 * (number // 3) + 1, 30 * (number % 3) + 1
        np.testing.assert_array_equal(table[top : top + 28, left : left + 28], image)
    assert table.sum(dtype=int) == IMAGES.sum(dtype=int)  # nothing but paper between them
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1"]


def test_an_image_is_drawn_as_it_is() -> None:
    np.testing.assert_array_equal(np.asarray(IMAGE.axes[0].images[0].get_array()), IMAGES[0])
    assert IMAGE.axes[0].get_title() == "label: 5"


def test_the_network_is_that_of_the_parameters() -> None:
    (axes,) = NETWORK.axes
    shown = texts(axes)
    for text in ("784 pixels", "512 units, relu", "10 classes, softmax"):
        assert text in shown
    assert "kernel 784 x 512, bias 512\n401,920 numbers" in shown
    assert "kernel 512 x 10, bias 10\n5,130 numbers" in shown
    dots, lines = (
        [c for c in axes.collections if isinstance(c, kind)]
        for kind in (PathCollection, LineCollection)
    )
    assert [len(layer.get_offsets()) for layer in dots] == [6, 6, 10]
    assert [len(between.get_segments()) for between in lines] == [36, 60]
    assert shown.count("⋮") == 2  # beside the layers that are not shown whole


def test_predictions_are_bars_that_sum_to_1() -> None:
    above, below = PREDICTIONS.axes[:2], PREDICTIONS.axes[2:]
    assert [axes.get_title() for axes in above] == ["label 1, read as 1", "label 2, read as 0"]
    for axes, row, image in zip(above, PROBABILITIES, IMAGES, strict=False):
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), image)
    for axes, row, label in zip(below, PROBABILITIES, (1, 2), strict=True):
        bars: Any = axes.patches
        assert [bar.get_width() for bar in bars] == pytest.approx(row)
        assert sum(bar.get_width() for bar in bars) == pytest.approx(1)
        assert [i for i, bar in enumerate(bars) if bar.get_hatch() is None] == [label]
        bottom, top = axes.get_ylim()
        assert bottom > 2.4 > -0.4 > top  # class 0 on top, and no bar cut off


def test_learning_curves_and_the_gap_between_them() -> None:
    (axes,) = CURVES.axes
    for line, accuracies in zip(axes.lines, (TRAIN, TEST), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        np.testing.assert_allclose(np.asarray(line.get_ydata()), 100 * accuracies)
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 2
    (gap,) = (path.vertices for path in axes.collections[0].get_paths())
    assert (np.asarray(gap)[:, 1].min(), np.asarray(gap)[:, 1].max()) == pytest.approx((89, 99))
    legend: Any = axes.get_legend()
    assert legend.get_title().get_text() == "gap after the last epoch: 5.50 points"
    assert [text.get_text() for text in legend.get_texts()] == ["training set", "test set"]


def test_functions_have_a_panel_each() -> None:
    for axes, name, y in zip(FUNCTIONS.axes, ("square", "cube"), (X**2, X**3), strict=True):
        assert (axes.get_title(loc="left"), axes.get_xlabel()) == (name, "number")
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), np.column_stack([X, y]))


def test_descent_goes_along_its_curve() -> None:
    curve, path, start = DESCENT.axes[0].lines
    np.testing.assert_array_equal(curve.get_xydata(), np.column_stack([X, X**2]))
    np.testing.assert_array_equal(path.get_xydata(), [[-1, 1], [-0.5, 0.25]])
    np.testing.assert_array_equal(start.get_xydata(), [[-1, 1]])


@pytest.mark.parametrize(
    "figure", [DIGITS, IMAGE, NETWORK, PREDICTIONS, CURVES, FUNCTIONS, DESCENT]
)
@pytest.mark.parametrize("scale", [1, 2])
def test_figures_are_drawn_whole_at_any_scale(figure: Figure, scale: int) -> None:
    """Nothing touches the edge, so that nothing is cut off there."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100 * scale)
    pixels = np.asarray(Image.open(file).convert("L"))
    assert pixels.shape == pytest.approx(100 * scale * figure.get_size_inches()[::-1])
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255
