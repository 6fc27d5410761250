"""What the figures show, read back from matplotlib's own objects."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from mnist_jax import figures, result_figures

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
FINAL = figures.draw_learning_curves(
    np.array([0.85, 0.95, 0.97]), TEST, ("running", "validation"), (3.5, 0.99, 0.94)
)
MATRIX = np.array([[950, 0, 3], [12, 1100, 0], [0, 1, 7]])
CONFUSION = result_figures.draw_confusion(MATRIX)
MISTAKES = result_figures.draw_mistakes(
    IMAGES[:3], np.array([[0.00002, 0.99995, 0.00003], [0.2, 0.1, 0.7], [0.3, 0.6, 0.1]]),
    np.array([0, 1, 2]), columns=2,
)  # fmt: skip
KERNELS = RNG.normal(size=(784, 5)), RNG.normal(size=(5, 10))
TRAINED: Any = {f"Dense_{i}": {"kernel": kernel} for i, kernel in enumerate(KERNELS)}
FEATURES = result_figures.draw_features(TRAINED, columns=2, rows=2)
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


def test_running_curves_end_with_what_the_final_parameters_reach() -> None:
    (axes,) = FINAL.axes
    np.testing.assert_allclose(axes.lines[2].get_xydata(), [[3.5, 99], [3.5, 94]])
    legend: Any = axes.get_legend()
    assert legend.get_title().get_text() == "gap of the final parameters: 5.00 points"
    assert [text.get_text() for text in legend.get_texts()] == [
        "running", "validation", "final parameters: training set, test set",
    ]  # fmt: skip
    # At first, the running accuracy is below, which is no overfitting: they cross at 5/3.
    corners = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    assert corners[:, 0].min() == pytest.approx(5 / 3)


def test_the_confusion_matrix_has_its_counts_and_colours_the_mistakes() -> None:
    (axes,) = CONFUSION.axes
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    assert counts == {
        (0, 0): "950", (2, 0): "3", (0, 1): "12", (1, 1): "1,100", (1, 2): "1", (2, 2): "7",
    }  # fmt: skip
    (drawn,) = axes.images
    np.testing.assert_array_equal(np.asarray(drawn.get_array()), [[0, 0, 3], [12, 0, 0], [0, 1, 0]])
    assert drawn.get_clim() == (0, 12)
    bottom, top = axes.get_ylim()
    assert bottom > top  # row 0 on top, as in the table
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("read as", "class")


def test_every_count_can_be_read_on_its_colour() -> None:
    """The contrast that WCAG 2.1 asks of text: 4.5."""

    def luminance(colour: Any) -> float:
        rgb = np.array(to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    counts = np.arange(36).reshape(6, 6)
    (axes,) = result_figures.draw_confusion(counts).axes
    (drawn,) = axes.images
    colours = drawn.to_rgba(np.asarray(drawn.get_array()))
    assert len(axes.texts) == 35
    for text in axes.texts:
        column, row = map(int, text.get_position())
        dark, light = sorted(map(luminance, (text.get_color(), colours[row, column][:3])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_mistakes_have_both_probabilities_in_words() -> None:
    first, second, third, rest = MISTAKES.axes
    for axes, image in zip((first, second, third), IMAGES, strict=False):
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), image)
    assert first.get_title() == "read as 1: > 99.9 %\nlabel 0: < 0.1 %"
    assert second.get_title() == "read as 2: 70.0 %\nlabel 1: 10.0 %"
    assert third.get_title() == "read as 1: 60.0 %\nlabel 2: 10.0 %"
    assert (rest.axison, len(rest.images)) == (False, 0)


def test_features_are_the_weights_of_the_units_that_count_most() -> None:
    norms = [sum(w**2 for w in row) for row in KERNELS[1]]
    expected = sorted(range(5), key=lambda unit: -norms[unit])[:4]
    *panels, bar = FEATURES.axes
    assert [axes.get_title() for axes in panels] == [str(unit) for unit in expected]
    largest = max(abs(KERNELS[0][:, unit]).max() for unit in expected)
    for axes, unit in zip(panels, expected, strict=True):
        (image,) = axes.images
        np.testing.assert_array_equal(np.ravel(image.get_array()), KERNELS[0][:, unit])
        assert image.get_clim() == (-largest, largest)
    assert bar.get_ylabel() == "weight"


def test_features_of_a_network_without_hidden_units_are_its_classes() -> None:
    figure = result_figures.draw_features({"Dense_0": {"kernel": KERNELS[0]}}, rows=1)
    assert [axes.get_title() for axes in figure.axes[:6]] == ["0", "1", "2", "3", "4", ""]


def test_a_file_has_twice_the_pixels() -> None:
    image = Image.open(io.BytesIO(result_figures.to_png(CURVES)))
    assert image.size == pytest.approx(200 * CURVES.get_size_inches())


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
    "figure",
    [
        DIGITS, IMAGE, NETWORK, PREDICTIONS, CURVES, FUNCTIONS, DESCENT,
        FINAL, CONFUSION, MISTAKES, FEATURES,
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", [1, 2])
def test_figures_are_drawn_whole_at_any_scale(figure: Figure, scale: int) -> None:
    """Nothing touches the edge, so that nothing is cut off there."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100 * scale)
    pixels = np.asarray(Image.open(file).convert("L"))
    assert pixels.shape == pytest.approx(100 * scale * figure.get_size_inches()[::-1])
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255
