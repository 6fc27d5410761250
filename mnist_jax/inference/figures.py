"""Every figure: each function takes arrays and returns a matplotlib Figure.

The figures do not use pyplot, so nothing has to be closed. Curves differ in colour, marker and
dash, and mistakes are also in words.
"""

import io
import math

import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Real
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe & Ito (2008): colour-blind readers can tell these apart, too.
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"

Images = Real[Array | np.ndarray, "n height width"]
Labels = Int[Array | np.ndarray, " n"]
Probabilities = Float[Array | np.ndarray, "n classes"]


def figure_to_png(figure: Figure) -> bytes:
    """The content of a PNG file, with 200 pixels for each inch of the figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200)
    return file.getvalue()


def _new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches, with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _new_panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of this size in inches, with a table of axes without frames or ticks."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.axis("off")
    return figure, panels


def draw_digits(images: Real[Array | np.ndarray, "rows columns height width"]) -> Figure:
    """A table of images, dark on light. The number of each row stands beside it."""
    rows, columns, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    table = padded.swapaxes(1, 2).reshape(rows * (height + 2), columns * (width + 2))
    figure, axes = _new_axes(0.5 * columns + 0.4, 0.5 * rows)
    axes.imshow(table, cmap="gray_r")
    axes.set_yticks((height + 2) * (np.arange(rows) + 0.5), [str(row) for row in range(rows)])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def draw_learning_curves(
    train: Float[np.ndarray, " epochs"],
    test: Float[np.ndarray, " epochs"],
    labels: tuple[str, str] = ("training set", "test set"),
    final: tuple[float, float, float] | None = None,
) -> Figure:
    """Two accuracies over the epochs, in percent. The area where `train` is higher is shaded.

    `train` and `test` are accuracies from 0 to 1 after each epoch. `final` adds the gap of the
    final parameters: number of epochs, accuracy on the training set, and on the test set.
    """
    figure, axes = _new_axes(6.0, 3.4)
    epochs, train, test = np.arange(1, len(train) + 1), 100 * train, 100 * test
    shade = {"color": ORANGE, "alpha": 0.25, "linewidth": 0}
    axes.fill_between(epochs, train, test, train >= test, interpolate=True, **shade)
    axes.plot(epochs, train, "o-", color=BLUE, label=labels[0])
    axes.plot(epochs, test, "s--", color=VERMILLION, label=labels[1])
    title = f"gap after the last epoch: {train[-1] - test[-1]:.2f} points"
    if final:
        epoch, high, low = final[0], 100 * final[1], 100 * final[2]
        label = "final parameters: training set, test set"
        axes.plot([epoch, epoch], [high, low], "kd-", label=label)
        title = f"gap of the final parameters: {high - low:.2f} points"
    axes.legend(frameon=False, title=title, alignment="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_confusion(matrix: Int[np.ndarray, "classes classes"]) -> Figure:
    """How often each class (row) was predicted as each class (column). Mistakes are coloured."""
    mistakes = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    largest = max(1, mistakes.max())
    figure, axes = _new_axes(5.4, 5.4)
    axes.imshow(mistakes, cmap="Blues", vmin=0, vmax=largest)
    for row, column in np.argwhere(matrix):
        is_dark = mistakes[row, column] > 0.72 * largest  # black would be hard to read
        axes.text(
            column, row, f"{matrix[row, column]:,}", ha="center", va="center",
            color="white" if is_dark else "black", weight="bold" if row == column else "normal",
        )  # fmt: skip
    classes = np.arange(len(matrix))
    axes.set(xticks=classes, yticks=classes, xlabel="read as", ylabel="class")
    axes.tick_params(length=0)
    return figure


def draw_features(params: PyTree, columns: int = 6, rows: int = 5) -> Figure:
    """Weights of the first layer of an `MLP`, of the units with the largest outgoing weights."""
    kernel = np.asarray(params["Dense_0"]["kernel"])
    units = np.arange(kernel.shape[1])
    if "Dense_1" in params:  # without hidden layers, the units are the classes
        norms = np.linalg.norm(params["Dense_1"]["kernel"], axis=1)
        units = np.argsort(-norms, kind="stable")
    units = units[: rows * columns]
    largest = np.abs(kernel[:, units]).max()
    figure, panels = _new_panels(rows, columns, 0.8 * columns + 0.6, 0.95 * rows)
    for axes, unit in zip(panels, units, strict=False):
        axes.set_title(f"{unit}", fontsize="small", pad=2)
        image = kernel[:, unit].reshape(math.isqrt(len(kernel)), -1)
        drawn = axes.imshow(image, cmap="RdBu", vmin=-largest, vmax=largest)
    figure.colorbar(drawn, ax=panels, label="weight", aspect=40)  # pyright: ignore
    return figure


def draw_predictions(
    images: Images, probabilities: Probabilities, labels: Labels, columns: int = 4
) -> Figure:
    """Images. Above each, the prediction and the label, with their probabilities."""
    rows = -(-len(labels) // columns)
    figure, panels = _new_panels(rows, columns, 1.3 * columns, 1.75 * rows)
    for i, label in enumerate(np.asarray(labels)):
        row = np.asarray(probabilities[i])
        read_as = f"read as {row.argmax()}: {_percent(float(row.max()))}"
        title = f"{read_as}\nlabel {label}: {_percent(float(row[label]))}"
        panels[i].set_title(title, fontsize="small")
        panels[i].imshow(images[i], cmap="gray_r")
    return figure


def _percent(probability: float) -> str:
    """In percent; rounding never gives 0 or 100."""
    if 0.001 <= probability <= 0.999:
        return f"{100 * probability:.1f} %"
    return "< 0.1 %" if probability < 0.5 else "> 99.9 %"
