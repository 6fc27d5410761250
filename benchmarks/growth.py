"""Measures how the time of an epoch grows with the batch, the network and the data.

    pip install -e ".[bench]"
    python benchmarks/growth.py   # four minutes

Prints the median of three warm epochs for each size, and writes growth.json and growth.png. The
images are random numbers; the time does not depend on the pixels.
"""

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax.config import Config
from mnist_jax.data.pipeline import Dataset, Examples
from mnist_jax.runtime.devices import make_mesh
from mnist_jax.train import init_train_state, set_up, train_epoch

HERE = Path(__file__).parent
SIZES = {
    "batch_size": [32, 64, 128, 256, 512, 1024, 2048, 4096],
    "hidden_size": [128, 256, 512, 1024, 2048, 4096],
    "examples": [6_000, 19_000, 60_000, 190_000, 600_000],
}
LESSON = {"hidden_size": 512, "examples": 60_000}


def main() -> None:
    measured: dict[str, dict[int, float]] = {name: {} for name in SIZES}
    for name, sizes in SIZES.items():
        for size in sizes:
            measured[name][size] = time_epoch(**{name: size})
            print(f"{name} {size}: {measured[name][size]:.3f} s", flush=True)
    (HERE / "growth.json").write_text(json.dumps(measured, indent=2) + "\n")
    draw(measured, HERE / "growth.png")


def time_epoch(batch_size: int = 128, hidden_size: int = 512, examples: int = 60_000) -> float:
    """Returns the median seconds of three epochs, after one that compiles."""
    # Chunks of equally many examples: the cost of a chunk is the same for every batch size.
    steps_per_chunk = max(1, 67 * 128 // batch_size)
    config = replace(
        Config(),
        batch_size=batch_size,
        hidden_sizes=(hidden_size,),
        steps_per_chunk=steps_per_chunk,
    )
    setup = set_up(config, random_dataset(examples), make_mesh())
    state = init_train_state(setup)
    seconds = []
    for epoch in range(1, 5):
        started = time.perf_counter()
        chunks = train_epoch(setup, state, epoch)
        for state, _ in chunks:
            pass
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def random_dataset(num_examples: int) -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.random((num_examples, 784), np.float32)
    labels = rng.integers(0, 10, num_examples, np.int32)
    return Dataset("random", Examples(images, labels), {"train": range(num_examples)})


def draw(measured: dict[str, dict[int, float]], path: Path) -> None:
    """Draws one panel for each kind of size."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(10, 3), sharey=True, layout="constrained")
    for axes, (name, points) in zip(panels, measured.items(), strict=True):
        draw_panel(axes, name, points)
    panels[0].set_ylabel("seconds per epoch")
    figure.savefig(path, dpi=150)


def draw_panel(axes: Any, name: str, points: dict[int, float]) -> None:
    """Draws seconds against sizes, and a proportional line through the lesson's point."""
    sizes = np.array(list(points))
    axes.loglog(sizes, list(points.values()), "o-", color="tab:blue", label="measured")
    if name in LESSON:
        linear = points[LESSON[name]] * sizes / LESSON[name]
        axes.loglog(sizes, linear, "--", color="0.5", label="linear")
        axes.legend(frameon=False)
    ticks = sizes[:: len(sizes) // 4]
    axes.set_xlabel(name.replace("_", " "))
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
