"""The results of the comparison: medians and ratios, the table, and the figure."""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

OURS, LIMIT = "mnist_jax", "limit"
LABELS = {
    OURS: "mnist_jax",
    "flax_nnx": "Flax NNX, a plain loop",
    "keras_jax": "Keras 3 on JAX",
    "keras_jax_50": "Keras 3, steps_per_execution=50",
    "torch_eager": "PyTorch",
    "torch_compile": "PyTorch, torch.compile",
    LIMIT: "the limit",
}
PARTS = {  # of the limit: the faster contestant of each part counts
    "products": ("products_numpy", "products_torch"),
    "update": ("update_numpy", "update_torch"),
}
COLUMNS = (
    ("epoch, s", "epoch_seconds", ".2f"),
    ("to ours", "epoch_seconds_to_ours", ".2f"),
    ("to the limit", "epoch_seconds_to_limit", ".2f"),
    ("process, s", "process_seconds", ".1f"),
    ("to ours", "process_seconds_to_ours", ".2f"),
    ("peak, MiB", "process_peak_mib", ".0f"),
    ("test", "process_test_accuracy", ".2%"),
)
Row = dict[str, Any]


class Process(NamedTuple):
    """Measurements of one whole process."""

    seconds: float
    peak_mib: float
    test_accuracy: float


def summarize(
    epochs: dict[str, list[float]], processes: dict[str, list[Process]]
) -> dict[str, Row]:
    """Returns one row per contestant: medians, and their ratios to ours and to the limit."""
    rows: dict[str, Row] = {}
    for name, seconds in epochs.items():
        if name in LABELS:
            rows[name] = {"epoch_seconds": statistics.median(seconds), "epochs": seconds}
    parts = measure_limit(epochs)
    if len(parts) == len(PARTS):
        rows[LIMIT] = {"epoch_seconds": sum(parts.values()), **parts}
    for name, runs in processes.items():
        for field in Process._fields:
            values = [getattr(run, field) for run in runs]
            rows[name][f"process_{field}"] = statistics.median(values)
    add_ratios(rows)
    return rows


def measure_limit(epochs: dict[str, list[float]]) -> dict[str, float]:
    """Returns the median seconds of each part of the limit that was measured."""
    parts = {}
    for part, names in PARTS.items():
        medians = [statistics.median(epochs[name]) for name in names if name in epochs]
        if medians:
            parts[part] = min(medians)
    return parts


def add_ratios(rows: dict[str, Row]) -> None:
    for row in rows.values():
        for key in ("epoch_seconds", "process_seconds", "process_peak_mib"):
            if key in row and OURS in rows:
                row[f"{key}_to_ours"] = row[key] / rows[OURS][key]
        if LIMIT in rows:
            row["epoch_seconds_to_limit"] = row["epoch_seconds"] / rows[LIMIT]["epoch_seconds"]


def print_table(rows: dict[str, Row]) -> None:
    table = Table("", *(title for title, _, _ in COLUMNS))
    for name, row in rows.items():
        cells = [format(row[key], form) if key in row else "" for _, key, form in COLUMNS]
        table.add_row(LABELS[name], *cells)
    Console(width=120).print(table)


def draw(rows: dict[str, Row], path: Path, num_epochs: int) -> None:
    """Draws two bar charts: the seconds of an epoch, and of a whole process."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
    draw_bars(left, rows, "epoch_seconds", ".2f", "an epoch, warm: seconds")
    title = f"start, {num_epochs} epochs, test: seconds"
    draw_bars(right, rows, "process_seconds", ".1f", title)
    left.invert_yaxis()
    figure.savefig(path, dpi=150)


def draw_bars(axes: Any, rows: dict[str, Row], key: str, form: str, title: str) -> None:
    names = [LABELS[name] for name in rows]
    values = [row.get(key, 0) for row in rows.values()]
    colors = [{OURS: "tab:blue", LIMIT: "0.85"}.get(name, "0.65") for name in rows]
    bars = axes.barh(names, values, color=colors)
    axes.bar_label(bars, [format(value, form) if value else "" for value in values], padding=3)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_xticks([])
    axes.margins(x=0.12)
