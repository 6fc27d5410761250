"""The pictures: arrays in, a matplotlib Figure out.

The Figures are made without pyplot: nothing global is changed, and nothing has to be closed. What
colours tell apart, something else does too: a hatch, a dash, a word beside it.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Real
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe & Ito (2008): told apart by the colour-blind, too.
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
GREY = "0.45"
MOST_UNITS = 10  # of a layer that a diagram shows


def draw_digits(images: Real[Array | np.ndarray, "rows columns height width"]) -> Figure:
    """A table of images, dark on light; beside each row its number."""
    rows, columns, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    table = padded.swapaxes(1, 2).reshape(rows * (height + 2), columns * (width + 2))
    figure = Figure(figsize=(0.5 * columns + 0.4, 0.5 * rows), layout="constrained")
    axes = figure.subplots()
    axes.imshow(table, cmap="gray_r")
    axes.set_yticks((height + 2) * (np.arange(rows) + 0.5), [str(row) for row in range(rows)])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def draw_image(image: Real[Array | np.ndarray, "height width"], title: str) -> Figure:
    """One image, large, with the numbers of its rows and columns and the scale of its greys."""
    figure = Figure(figsize=(4.4, 3.6), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(image, cmap="gray_r")
    figure.colorbar(drawn, label="pixel").outline.set_visible(False)  # pyright: ignore
    axes.set(title=title, xlabel="column", ylabel="row")
    return figure


def draw_network(params: PyTree) -> Figure:
    """The layers of an `MLP`, their sizes read from its parameters, and what lies between them."""
    kernels = [params[f"Dense_{i}"]["kernel"].shape for i in range(len(params))]
    sizes = [kernels[0][0], *(kernel[1] for kernel in kernels)]
    names = ["pixels", *["units, relu"] * (len(sizes) - 2), "classes, softmax"]
    figure = Figure(figsize=(2.3 * len(sizes), 3.3), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    heights = [_draw_units(axes, x, size) for x, size in enumerate(sizes)]
    for x, (size, name) in enumerate(zip(sizes, names, strict=True)):
        axes.text(x, 0.62, f"{size:,} {name}", ha="center", weight="bold")
    for x, (fan_in, fan_out) in enumerate(kernels):
        lines = [((x, a), (x + 1, b)) for a in heights[x] for b in heights[x + 1]]
        axes.add_collection(LineCollection(lines, colors="0.8", linewidths=0.5, zorder=0))
        text = f"kernel {fan_in} x {fan_out}, bias {fan_out}\n{(fan_in + 1) * fan_out:,} numbers"
        axes.text(x + 0.5, -0.68, text, ha="center", va="center", color=GREY)
    for label, y in enumerate(heights[-1] if sizes[-1] <= MOST_UNITS else []):
        axes.text(len(kernels) + 0.08, y, str(label), va="center")
    axes.set(xlim=(-0.4, len(kernels) + 0.4), ylim=(-0.78, 0.7))
    return figure


def _draw_units(axes: Axes, x: int, size: int) -> Float[np.ndarray, " shown"]:
    """Draws a layer, or its first and last three units; returns their heights, from the top."""
    heights = np.linspace(0.5, -0.5, min(size, MOST_UNITS))
    if size > MOST_UNITS:
        heights = np.delete(heights, range(3, MOST_UNITS - 3))
        axes.text(x, 0, "⋮", ha="center", va="center", size="xx-large")
    axes.scatter(np.full(len(heights), x), heights, 90, color=BLUE, edgecolors="white")
    return heights


def draw_functions(
    x: Real[Array | np.ndarray, " n"],
    functions: Mapping[str, Real[Array | np.ndarray, " n"]],
    xlabel: str = "x",
) -> Figure:
    """A panel a function, with its name above it."""
    figure = Figure(figsize=(3.6 * len(functions), 2.6), layout="constrained")
    panels = figure.subplots(1, len(functions), squeeze=False)[0]
    for axes, (name, y) in zip(panels, functions.items(), strict=True):
        axes.plot(x, y, color=BLUE, linewidth=2)
        axes.set_title(name, loc="left", fontsize="medium")
        axes.set_xlabel(xlabel)
        _tidy(axes)
    return figure


def draw_learning_curves(
    train: Float[np.ndarray, " epochs"],
    test: Float[np.ndarray, " epochs"],
    labels: tuple[str, str] = ("training set", "test set"),
    final: tuple[float, float, float] | None = None,
) -> Figure:
    """Accuracies (of 1) of each epoch, in percent; where training is above, the gap is shaded.

    That gap is the overfitting, if `train` is of the parameters after each epoch. A running
    accuracy, of an epoch as it went by, is not.

    Args:
        train, test: accuracies, named by `labels`.
        final: then, for the gap: after which epoch, with a fraction within one, the final
            parameters have which accuracy on the whole training set, and on the test set.
    """
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, len(train) + 1)
    axes.fill_between(
        epochs, 100 * train, 100 * test, train >= test, True,
        color=ORANGE, alpha=0.25, linewidth=0,
    )  # fmt: skip
    axes.plot(epochs, 100 * train, "o-", color=BLUE, label=labels[0])
    axes.plot(epochs, 100 * test, "s--", color=VERMILLION, label=labels[1])
    train_end, test_end = final[1:] if final else (train[-1], test[-1])
    if final:
        heights = [100 * train_end, 100 * test_end]
        name = "final parameters: training set, test set"
        axes.plot([final[0]] * 2, heights, "kd-", label=name)
    after = "of the final parameters" if final else "after the last epoch"
    gap = f"gap {after}: {100 * (train_end - test_end):.2f} points"
    axes.legend(frameon=False, title=gap, alignment="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="accuracy, %")
    _tidy(axes)
    return figure


def draw_predictions(
    images: Real[Array | np.ndarray, "n height width"],
    probabilities: Float[Array | np.ndarray, "n classes"],
    labels: Int[Array | np.ndarray, " n"],
) -> Figure:
    """Each image above its probabilities: the label's bar is plain, the others are hatched."""
    number, classes = probabilities.shape
    figure = Figure(figsize=(1.7 * number + 0.5, 3.9), layout="constrained")
    panels = figure.subplots(2, number, squeeze=False, height_ratios=(2, 3), sharey="row")
    digits = np.arange(classes)
    for image, row, label, above, below in zip(
        images, np.asarray(probabilities), np.asarray(labels), *panels, strict=True
    ):
        above.imshow(image, cmap="gray_r")
        above.axis("off")
        above.set_title(f"label {label}, read as {row.argmax()}", fontsize="medium")
        bars = below.barh(digits, row, color=BLUE)
        for digit in digits[digits != label]:
            bars[digit].set(facecolor=VERMILLION, edgecolor="white", hatch="//////", linewidth=0)
        below.set(xlim=(0, 1), xlabel="probability")
        below.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        _tidy(below)
    panels[1, 0].set(yticks=digits, ylim=(classes - 0.4, -0.6), ylabel="class")
    return figure


def draw_descent(
    curve: tuple[Float[Array | np.ndarray, " n"], Float[Array | np.ndarray, " n"]],
    path: tuple[Float[Array | np.ndarray, " steps"], Float[Array | np.ndarray, " steps"]],
) -> Figure:
    """The loss as a function of one weight, and where steps of gradient descent have led.

    Args:
        curve, path: weights, and the loss of each.
    """
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*curve, color=GREY, label="loss at each weight")
    axes.plot(*path, "o", color=VERMILLION, label="steps")
    axes.plot(path[0][:1], path[1][:1], "ks", markersize=8, label="start")
    axes.set(xlabel="the weight", ylabel="loss")
    axes.legend(frameon=False)
    _tidy(axes)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
