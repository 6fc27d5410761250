"""`python -m mnist_jax seeds`: the same training from many seeds at once, and how they spread."""

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.table import Table
from scipy import stats

from mnist_jax.command_line import Platform, check_options, parse_args
from mnist_jax.config import Config, Range
from mnist_jax.errors import RunError
from mnist_jax.input_pipeline import epoch_order, load_dataset
from mnist_jax.metrics import Metrics, Summary, summarize
from mnist_jax.runtime import check_platform, console, describe_devices, exit_at_once, run_program
from mnist_jax.sharding import make_mesh, split_leading_axis
from mnist_jax.steps import TrainState, empty_metrics, evaluate, init_state, train_steps
from mnist_jax.task import Task, make_task, order_of_split, split_seed
from mnist_jax.workdir import check_writable, write_whole


@dataclasses.dataclass(frozen=True)
class Options:
    """What is wanted beside the settings of a run."""

    num_seeds: Annotated[int, Range(2, 10**5)] = 10
    """How many: --seed and those after it."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("seeds.json")
    """Where the numbers go, as JSON."""
    require_platform: Platform = None
    """Fail rather than run on another platform."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a seed ends with: metrics of the final parameters."""

    seed: int
    train: Summary
    test: Summary


def main(args: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    config, options = parse_args(
        args,
        options=Options,
        prog="python -m mnist_jax seeds",
        description="Train the network from many seeds at once, and show how they spread.",
    )
    return run_program(lambda: compare_seeds(config, options))


def compare_seeds(config: Config, options: Options) -> None:
    """Trains, prints a table, and writes the JSON file.

    Raises:
        RunError: a loss is not finite; the table and the file are then of the other seeds.
    """
    check_platform(options.require_platform)
    check_writable(options.out)
    started = time.perf_counter()
    dataset = load_dataset(config)
    task = make_task(config, dataset, make_mesh())
    seeds = range(config.seed, config.seed + options.num_seeds)
    console.print(f"{dataset.name}, {len(seeds)} seeds, {describe_devices()}")
    outcomes = evaluate_seeds(task, train_seeds(task, seeds), seeds)
    seconds = time.perf_counter() - started
    diverged = sorted({*seeds} - {outcome.seed for outcome in outcomes})
    if len(outcomes) > 1:
        statistics = describe([outcome.test.accuracy for outcome in outcomes])
        report = {
            "dataset": dataset.name,
            "config": dataclasses.asdict(config),
            "seeds": [dataclasses.asdict(outcome) for outcome in outcomes],
            "diverged": diverged,
            "test_accuracy": statistics,
            "seconds": seconds,
        }
        write_whole(options.out, json.dumps(report, indent=2) + "\n")
        show(outcomes, statistics)
    console.print(f"{seconds:.1f} s, {seconds / len(seeds):.2f} s a seed")
    if diverged:
        raise RunError(
            f"{len(diverged)} of {len(seeds)} seeds end with a loss that is not finite: "
            f"{', '.join(map(str, diverged))}. Try a lower learning_rate, or warmup_steps"
        )


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


def evaluate_seeds(task: Task, states: TrainState, seeds: Sequence[int]) -> list[Outcome]:
    """The metrics of each seed's parameters on the whole training and test set.

    Those with a loss that is not finite are left out.
    """
    evaluate_all = jax.jit(
        jax.vmap(functools.partial(evaluate, model=task.model), in_axes=(0, None, None))
    )
    train, test = (
        jax.tree.map(
            np.asarray, evaluate_all(states.params, task.examples, order_of_split(task, split))
        )
        for split in ("train", "test")
    )
    outcomes = [
        Outcome(seed, *(summarize(Metrics(*(x[i] for x in split))) for split in (train, test)))
        for i, seed in enumerate(seeds)
    ]
    return [o for o in outcomes if np.isfinite([o.train.loss, o.test.loss]).all()]


def stack(tree: Any, n: int) -> Any:
    """`n` copies of each array, along a new first axis."""
    return jax.tree.map(lambda x: np.stack([np.asarray(x)] * n), tree)


def describe(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, extremes, and Student's 95 % interval of the mean."""
    mean, deviation, n = np.mean(values), np.std(values, ddof=1), len(values)
    half = stats.t.ppf(0.975, n - 1) * deviation / np.sqrt(n)
    return {
        "mean": float(mean),
        "standard_deviation": float(deviation),
        "interval_95": [float(mean - half), float(mean + half)],
        "best": max(values),
        "worst": min(values),
    }


def show(outcomes: Sequence[Outcome], statistics: dict[str, Any]) -> None:
    """Prints the table of seeds, and what follows from it."""
    table = Table("seed", "test accuracy, %", "test loss", "training accuracy, %")
    for outcome in outcomes:
        test, train = (f"{100 * split.accuracy:.2f}" for split in (outcome.test, outcome.train))
        table.add_row(str(outcome.seed), test, f"{outcome.test.loss:.4f}", train)
    console.print(table)
    mean, deviation, low, high = (
        f"{100 * value:.2f}"
        for value in (
            statistics["mean"],
            statistics["standard_deviation"],
            *statistics["interval_95"],
        )
    )
    best = max(outcomes, key=lambda outcome: outcome.test.accuracy)
    worst = min(outcomes, key=lambda outcome: outcome.test.accuracy)
    console.print(
        f"Test accuracy: mean {mean} %, 95 % interval of the mean {low} to {high} %\n"
        f"Standard deviation: {deviation} points\n"
        f"Best: seed {best.seed}, {100 * best.test.accuracy:.2f} %; "
        f"worst: seed {worst.seed}, {100 * worst.test.accuracy:.2f} %"
    )


if __name__ == "__main__":
    exit_at_once(main())
