"""Pictures of what a trained network does and has learnt, in the manner of `figures.py`."""

import io
import math

import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Real
from matplotlib.figure import Figure


def draw_confusion(matrix: Int[np.ndarray, "classes classes"]) -> Figure:
    """How often each class (row) was read as each class (column).

    Only the mistakes have a colour, deeper for more: beside what is right, all would be pale.
    """
    classes = np.arange(len(matrix))
    mistakes = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    most = max(1, mistakes.max())
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mistakes, cmap="Blues", vmin=0, vmax=most)
    for row, column in np.argwhere(matrix):
        count, is_right = matrix[row, column], row == column
        is_dark = mistakes[row, column] > 0.72 * most  # where black and white can be read alike
        axes.text(
            column, row, f"{count:,}", ha="center", va="center",
            color="white" if is_dark else "black", weight="bold" if is_right else "normal",
        )  # fmt: skip
    axes.set(xticks=classes, yticks=classes, xlabel="read as", ylabel="class")
    axes.set_xticks(classes[:-1] + 0.5, minor=True)
    axes.set_yticks(classes[:-1] + 0.5, minor=True)
    axes.grid(which="minor", color="0.9")
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return figure


def draw_features(params: PyTree, columns: int = 6, rows: int = 5) -> Figure:
    """What some units of the first layer of an `MLP` look for: their weights, as images.

    They are the units whose outgoing weights have the largest norm: what these see counts most. All
    share one scale, symmetric about 0: a pixel with ink raises the unit's sum where it is positive.
    """
    kernel = np.asarray(params["Dense_0"]["kernel"])
    units = np.arange(kernel.shape[1])
    if "Dense_1" in params:  # else they are the classes
        units = np.argsort(-np.linalg.norm(params["Dense_1"]["kernel"], axis=1), kind="stable")
    units = units[: rows * columns]
    side = math.isqrt(len(kernel))
    largest = np.abs(kernel[:, units]).max()
    figure = Figure(figsize=(0.8 * columns + 0.6, 0.95 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for axes, unit in zip(panels.flat, units, strict=False):
        axes.set_title(f"{unit}", fontsize="small", pad=2)
        image = kernel[:, unit].reshape(side, side)
        drawn = axes.imshow(image, cmap="RdBu", vmin=-largest, vmax=largest)
    bar = figure.colorbar(drawn, ax=panels, label="weight", aspect=40)  # pyright: ignore
    bar.outline.set_visible(False)  # pyright: ignore
    return figure


def draw_mistakes(
    images: Real[Array | np.ndarray, "n height width"],
    probabilities: Float[Array | np.ndarray, "n classes"],
    labels: Int[Array | np.ndarray, " n"],
    columns: int = 4,
) -> Figure:
    """Images; above each the probabilities of what it was read as and of what it is.

    In words: bars of a network that is sure of itself are all full, or empty.
    """
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.75 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, image, row, label in zip(
        panels, images, np.asarray(probabilities), labels, strict=False
    ):
        axes.imshow(image, cmap="gray_r")
        shown = (
            f"{name} {digit}: {_percent(float(row[digit]))}"
            for name, digit in (("read as", int(np.argmax(row))), ("label", int(label)))
        )
        axes.set_title("\n".join(shown), fontsize="small")
    return figure


def _percent(probability: float) -> str:
    """Nothing is certain, or ruled out, by rounding."""
    if 0.001 <= probability <= 0.999:
        return f"{100 * probability:.1f} %"
    return "< 0.1 %" if probability < 0.5 else "> 99.9 %"


def to_png(figure: Figure) -> bytes:
    """The figure as a file, at twice the pixels that it is shown with: sharp on any screen."""
    file = io.BytesIO()
    pil = {"optimize": True}
    figure.savefig(file, format="png", dpi=200, metadata={"Software": None}, pil_kwargs=pil)
    return file.getvalue()
