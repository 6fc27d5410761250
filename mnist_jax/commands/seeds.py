"""`python -m mnist_jax seeds`: the same training from many seeds at once, and how they spread."""

from mnist_jax.command_line import parse_args
from mnist_jax.commands.options import SeedsOptions

if __name__ == "__main__":  # before jax is imported
    CONFIG, OPTIONS = parse_args(options=SeedsOptions, command="seeds")

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table
from scipy.special import stdtrit

from mnist_jax.config import Config
from mnist_jax.errors import ConfigError, RunError
from mnist_jax.input_pipeline import epoch_order, load_dataset
from mnist_jax.metrics import Metrics, Summary, summarize
from mnist_jax.run_log import VERSIONS
from mnist_jax.runtime import check_platform, console, describe_devices, exit_at_once, run_program
from mnist_jax.sharding import make_mesh, split_leading_axis
from mnist_jax.steps import TrainState, empty_metrics, evaluate, init_state, train_steps
from mnist_jax.task import Task, make_task, order_of_split, split_seed
from mnist_jax.workdir import check_writable, write_whole

NUM_SEEDS = 2**32  # that there are
HAVE_NO_EFFECT = "steps_per_chunk", "checkpoint_every_steps", "keep", "tensorboard"


class Outcome(NamedTuple):
    """What a seed ends with: metrics of the final parameters."""

    seed: int
    train: Summary
    held_out: Summary
    """On the validation split where there is one: the test set is not for comparing settings."""


def compare_seeds(config: Config, options: SeedsOptions) -> None:
    """Trains, prints a table, and writes the JSON file.

    Raises:
        ConfigError: a setting would be ignored, or there are not so many seeds.
        RunError: a loss is not finite; the table and the file are then of the other seeds.
    """
    check_settings(config, options)
    check_platform(options.require_platform)
    out = check_writable(options.out)
    started = time.perf_counter()
    dataset = load_dataset(config)
    task = make_task(config, dataset, make_mesh())
    split = "validation" if "validation" in task.splits else "test"
    seeds = range(config.seed, config.seed + options.num_seeds)
    console.print(f"{dataset.name}, {len(seeds)} seeds, {describe_devices()}")
    outcomes = evaluate_seeds(task, train_seeds(task, seeds), seeds, split)
    seconds = time.perf_counter() - started
    diverged = sorted({*seeds} - {outcome.seed for outcome in outcomes})
    accuracies = [outcome.held_out.accuracy for outcome in outcomes]
    statistics = describe(accuracies) if len(accuracies) > 1 else None
    show(outcomes, statistics, split)
    console.print(f"{seconds:.1f} s, {seconds / len(seeds):.2f} s a seed")
    report = {
        **VERSIONS,
        "devices": describe_devices(),
        "dataset": dataset.name,
        "config": dataclasses.asdict(config),
        "seeds": [
            {"seed": seed, "train": dataclasses.asdict(train), split: dataclasses.asdict(held_out)}
            for seed, train, held_out in outcomes
        ],
        "diverged": diverged,
        f"{split}_accuracy": statistics,
        "seconds": seconds,
    }
    write_whole(out, json.dumps(report, indent=2) + "\n")
    if diverged:
        raise RunError(
            f"{len(diverged)} of {len(seeds)} seeds end with a loss that is not finite: "
            f"{', '.join(map(str, diverged))}. Try a lower learning_rate, or warmup_steps"
        )


def check_settings(config: Config, options: SeedsOptions) -> None:
    """Raises ConfigError for seeds that there are not, and for settings without an effect here."""
    last = config.seed + options.num_seeds - 1
    if last >= NUM_SEEDS:
        raise ConfigError(f"the last seed would be {last}; it must be below {NUM_SEEDS}")
    for name in HAVE_NO_EFFECT:
        if getattr(config, name) != getattr(Config, name):
            raise ConfigError(f"{name} is set, but has no effect on many seeds; leave it out")


def train_seeds(task: Task, seeds: Sequence[int]) -> TrainState:
    """The final states of all `seeds`, stacked: `vmap` over what a single run calls.

    Some more seeds than wanted are trained where the devices could not share them equally.
    """
    padded = [*seeds, *range(-len(seeds) % task.mesh.size)]
    init_keys, order_keys = zip(*map(split_seed, padded), strict=True)
    num_pixels = task.examples.images.shape[1]
    static: dict[str, Any] = {"model": task.model, "tx": task.tx}
    init = jax.vmap(lambda key: init_state(key, num_pixels, **static))
    states = split_leading_axis(jax.jit(init)(jnp.stack(init_keys)), task.mesh)
    step_all = jax.jit(
        jax.vmap(functools.partial(train_steps, **static), in_axes=(0, 0, None, 0, None, None)),
        donate_argnums=(0, 1),
    )
    for epoch in range(1, task.config.num_epochs + 1):
        started = time.perf_counter()
        orders = [
            epoch_order(key, epoch, len(task.splits["train"]), task.batch_size)
            for key in order_keys
        ]
        order, metrics = split_leading_axis(
            (np.stack(orders), stack(empty_metrics(task.num_steps), len(padded))), task.mesh
        )
        states, metrics = step_all(states, metrics, task.examples, order, 0, task.num_steps)
        jax.block_until_ready(metrics)
        seconds = time.perf_counter() - started
        console.print(f"epoch {epoch}/{task.config.num_epochs}   {seconds:.1f} s")
    return states


def evaluate_seeds(
    task: Task, states: TrainState, seeds: Sequence[int], split: str
) -> list[Outcome]:
    """The metrics of each seed's parameters on the whole training set and on `split`.

    Those with a loss that is not finite are left out.
    """
    evaluate_all = jax.jit(
        jax.vmap(functools.partial(evaluate, model=task.model), in_axes=(0, None, None))
    )
    stacked = [
        jax.tree.map(
            np.asarray, evaluate_all(states.params, task.examples, order_of_split(task, name))
        )
        for name in ("train", split)
    ]
    outcomes = [
        Outcome(seed, *(summarize(Metrics(*(x[i] for x in metrics))) for metrics in stacked))
        for i, seed in enumerate(seeds)
    ]
    return [o for o in outcomes if np.isfinite([o.train.loss, o.held_out.loss]).all()]


def stack(tree: Any, n: int) -> Any:
    """`n` copies of each array, along a new first axis."""
    return jax.tree.map(lambda x: np.stack([np.asarray(x)] * n), tree)


def describe(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, extremes, and Student's 95 % interval of the mean."""
    mean, deviation, n = np.mean(values), np.std(values, ddof=1), len(values)
    half = stdtrit(n - 1, 0.975) * deviation / np.sqrt(n)
    return {
        "mean": float(mean),
        "standard_deviation": float(deviation),
        "interval_95": [float(mean - half), float(mean + half)],
        "best": max(values),
        "worst": min(values),
    }


def show(outcomes: Sequence[Outcome], statistics: dict[str, Any] | None, split: str) -> None:
    """Prints the table of seeds, and what follows from it."""
    table = Table("seed", f"{split} accuracy, %", f"{split} loss", "training accuracy, %")
    for seed, train, held_out in outcomes:
        accuracies = (f"{100 * summary.accuracy:.2f}" for summary in (held_out, train))
        table.add_row(str(seed), next(accuracies), f"{held_out.loss:.4f}", next(accuracies))
    console.print(table)
    if not statistics:
        return
    low, high = (100 * bound for bound in statistics["interval_95"])
    best, worst = (f(outcomes, key=lambda o: o.held_out.accuracy) for f in (max, min))
    console.print(
        f"{split.capitalize()} accuracy: mean {100 * statistics['mean']:.2f} %, "
        f"95 % interval of the mean {low:.2f} to {high:.2f} %\n"
        f"Standard deviation: {100 * statistics['standard_deviation']:.2f} points\n"
        f"Best: seed {best.seed}, {100 * best.held_out.accuracy:.2f} %; "
        f"worst: seed {worst.seed}, {100 * worst.held_out.accuracy:.2f} %"
    )


if __name__ == "__main__":
    exit_at_once(run_program(lambda: compare_seeds(CONFIG, OPTIONS)))  # pyright: ignore[reportPossiblyUnboundVariable]
