"""How the cost of an epoch grows with the batch, the network and the data.

    pip install -e ".[bench]"
    python benchmarks/growth.py   # four minutes

Prints the median of three warm epochs for each size, and writes growth.json and growth.png. Images
are random numbers: no time depends on what is in them.
"""

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from mnist_jax.config import Config
from mnist_jax.input_pipeline import Dataset
from mnist_jax.sharding import make_mesh
from mnist_jax.steps import Examples
from mnist_jax.task import new_metrics, set_up
from mnist_jax.train import train_epoch

HERE = Path(__file__).parent
SIZES = {
    "batch_size": [32, 64, 128, 256, 512, 1024, 2048, 4096],
    "hidden_size": [128, 256, 512, 1024, 2048, 4096],
    "examples": [6_000, 19_000, 60_000, 190_000, 600_000],
}


def main() -> None:
    """Measures, prints and draws."""
    measured: dict[str, dict[int, float]] = {name: {} for name in SIZES}
    for name, sizes in SIZES.items():
        for size in sizes:
            measured[name][size] = time_epoch(**{name: size})
            print(f"{name} {size}: {measured[name][size]:.3f} s", flush=True)
    (HERE / "growth.json").write_text(json.dumps(measured, indent=2) + "\n")
    draw(measured, HERE / "growth.png")


def time_epoch(batch_size: int = 128, hidden_size: int = 512, examples: int = 60_000) -> float:
    """Median seconds of an epoch, compiled before."""
    rng = np.random.default_rng(0)
    images = rng.random((examples, 784), np.float32)
    labels = rng.integers(0, 10, examples, np.int32)
    dataset = Dataset("random", Examples(images, labels), {"train": range(examples)})
    # As many examples a chunk whatever the batch: a chunk's own cost is not what is measured.
    chunk = max(1, 64 * 128 // batch_size)
    config = replace(Config(), batch_size=batch_size, hidden_sizes=(hidden_size,))
    task, state = set_up(replace(config, steps_per_chunk=chunk), dataset, make_mesh())
    seconds = []
    for epoch in range(1, 5):
        started = time.perf_counter()
        chunks = train_epoch(task, state, new_metrics(task), epoch)
        for state, _, _ in chunks:
            pass
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def draw(measured: dict[str, dict[int, float]], path: Path) -> None:
    """A panel a size, with a line for what grows in proportion to it from the lesson's size on."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True, layout="constrained")
    for axis, (name, points) in zip(axes, measured.items(), strict=True):
        sizes, seconds = np.array(list(points)), np.array(list(points.values()))
        axis.loglog(sizes, seconds, "o-", color="tab:blue", label="measured")
        if name != "batch_size":
            lessons = {"hidden_size": 512, "examples": 60_000}[name]
            linear = points[lessons] * sizes / lessons
            axis.loglog(sizes, linear, "--", color="0.5", label="linear")
            axis.legend(frameon=False)
        axis.set_xlabel(name.replace("_", " "))
        axis.set_xticks(sizes[:: len(sizes) // 4], [f"{n:,}" for n in sizes[:: len(sizes) // 4]])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds an epoch")
    fig.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
