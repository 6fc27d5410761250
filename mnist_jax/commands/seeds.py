"""`python -m mnist_jax seeds`: trains with many seeds at once, and compares the results."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.table import Table
from scipy.special import stdtrit

from mnist_jax.config import RunOptions, reject
from mnist_jax.data import pipeline
from mnist_jax.runtime import devices
from mnist_jax.runtime.cli import Platform, Range
from mnist_jax.runtime.errors import RunError
from mnist_jax.runtime.metric_writer import Totals
from mnist_jax.runtime.program import console
from mnist_jax.runtime.workdir import check_writable, write_json
from mnist_jax.steps import TrainState, evaluate, init_state, split_seed, train_steps
from mnist_jax.train import ADVICE, Setup, set_up


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Train with many seeds at once, and show how the results vary."""

    num_seeds: Annotated[int, Range(2, 10**5)] = 10
    """Number of seeds: --seed and the ones after it."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("seeds.json")
    """JSON file for the results."""
    require_platform: Platform = None
    """Fail instead of running on another platform."""


def main(options: Options) -> None:
    """Trains, prints a table, and writes the JSON file; RunError if some losses are not finite."""
    config = options.config
    dataclasses.replace(config, seed=config.seed + options.num_seeds - 1)  # checks the last seed
    reject(config, "steps_per_chunk", "checkpoint_every_steps", "keep", "tensorboard")
    devices.check_platform(options.require_platform)
    out = check_writable(options.out)
    started = time.perf_counter()
    setup = set_up(config, pipeline.load_dataset(config), devices.make_mesh())
    results: dict[str, Any] = {
        **devices.package_versions("mnist_jax", "jax"),
        "devices": devices.describe_devices(),
        "dataset": setup.dataset.name,
        "config": dataclasses.asdict(config),
    }
    seeds = range(config.seed, config.seed + options.num_seeds)
    console.print(f"{setup.dataset.name}, {len(seeds)} seeds, {results['devices']}")
    states = train_seeds(setup, seeds)
    # The test set is not for comparing settings: with a validation split, it is not used.
    shown = "validation" if "validation" in setup.dataset.splits else "test"
    train = evaluate_seeds(setup, states, "train")
    held_out = evaluate_seeds(setup, states, shown)
    rows, diverged = [], []
    for i, seed in enumerate(seeds):
        if np.isfinite(train[i]["loss"] + held_out[i]["loss"]):
            rows.append({"seed": seed, "train": train[i], shown: held_out[i]})
        else:
            diverged.append(seed)
    statistics = compute_statistics([row[shown]["accuracy"] for row in rows])
    print_table(rows, shown, statistics)
    seconds = time.perf_counter() - started
    console.print(f"{seconds:.1f} s, {seconds / len(seeds):.2f} s per seed")
    results |= {"seeds": rows, "diverged": diverged, f"{shown}_accuracy": statistics}
    write_json(out, results | {"seconds": seconds})
    if diverged:
        counts, names = f"{len(diverged)} of {len(seeds)}", ", ".join(map(str, diverged))
        raise RunError(f"the loss of {counts} seeds is not finite: {names}. {ADVICE}")


def train_seeds(setup: Setup, seeds: Sequence[int]) -> TrainState:
    """The final states of all seeds, stacked: `vmap` over the functions of a single run.

    If the devices cannot split the seeds equally, some more are trained.
    """
    padded = [*seeds, *range(-len(seeds) % setup.mesh.size)]
    keys = [split_seed(seed) for seed in padded]
    static: dict[str, Any] = {"model": setup.model, "tx": setup.tx}
    init = jax.vmap(lambda key: init_state(key, pipeline.NUM_PIXELS, **static))
    init_keys = jnp.stack([init_key for init_key, _ in keys])
    states = devices.split_leading_axis(jax.jit(init)(init_keys), setup.mesh)
    train_one = functools.partial(train_steps, **static)
    train_all = jax.jit(jax.vmap(train_one, in_axes=(0, None, 0)), donate_argnums=0)
    num_train = len(setup.dataset.splits["train"])
    for epoch in range(1, setup.config.num_epochs + 1):
        started = time.perf_counter()
        orders = []
        for _, order_key in keys:
            orders.append(pipeline.epoch_order(order_key, epoch, num_train, setup.batch_size))
        rows = devices.split_leading_axis(np.stack(orders), setup.mesh)
        states, metrics = train_all(states, setup.dataset.examples, rows)
        jax.block_until_ready(metrics)
        seconds = time.perf_counter() - started
        console.print(f"epoch {epoch}/{setup.config.num_epochs}   {seconds:.1f} s")
    return states


def evaluate_seeds(setup: Setup, states: TrainState, split: str) -> list[dict[str, float]]:
    """The loss and accuracy of each of the stacked states on a split."""
    rows = jnp.asarray(pipeline.batch_rows(setup.dataset.splits[split], setup.batch_size))
    evaluate_one = functools.partial(evaluate, model=setup.model)
    evaluate_all = jax.jit(jax.vmap(evaluate_one, in_axes=(0, None, None)))
    metrics = jax.device_get(evaluate_all(states.params, setup.dataset.examples, rows))
    names, results = ("loss", "accuracy", "correct", "count"), []
    for loss_sums, correct, counts in zip(*metrics, strict=True):
        totals = Totals().add(loss_sums, correct, counts)
        results.append({name: getattr(totals, name) for name in names})
    return results


def compute_statistics(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, sample standard deviation, extremes, and Student's 95 % interval of the mean.

    Fewer than two values have no standard deviation: the result is None.
    """
    n = len(values)
    if n < 2:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * deviation / n**0.5
    interval = [mean - half, mean + half]
    statistics = {"mean": mean, "standard_deviation": deviation, "interval_95": interval}
    return statistics | {"best": max(values), "worst": min(values)}


def print_table(rows: list[dict[str, Any]], shown: str, statistics: dict[str, Any] | None) -> None:
    """Prints each seed's results on the training set and on `shown`, then statistics."""
    table = Table("seed", f"{shown} accuracy, %", f"{shown} loss", "training accuracy, %")
    for row in rows:
        accuracy, train_accuracy = 100 * row[shown]["accuracy"], 100 * row["train"]["accuracy"]
        loss = f"{row[shown]['loss']:.4f}"
        table.add_row(str(row["seed"]), f"{accuracy:.2f}", loss, f"{train_accuracy:.2f}")
    console.print(table)
    if not statistics:
        return
    low, high = statistics["interval_95"]
    rows = sorted(rows, key=lambda row: row[shown]["accuracy"])
    console.print(
        f"{shown.capitalize()} accuracy: mean {100 * statistics['mean']:.2f} %, "
        f"95 % interval of the mean {100 * low:.2f} to {100 * high:.2f} %\n"
        f"Standard deviation: {100 * statistics['standard_deviation']:.2f} points\n"
        f"Best: seed {rows[-1]['seed']}, {100 * statistics['best']:.2f} %\n"
        f"Worst: seed {rows[0]['seed']}, {100 * statistics['worst']:.2f} %"
    )
