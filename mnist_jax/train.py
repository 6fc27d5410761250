"""Trains and evaluates: `python -m mnist_jax.train --help`, or `train_and_evaluate` from Python."""

import signal
import sys

from mnist_jax.command_line import Launch, leave_signals_to_the_system, parse_args
from mnist_jax.config import Config, deciding_fields

if __name__ == "__main__":  # before jax is imported: --help and a wrong flag are answered at once
    leave_signals_to_the_system()
    CONFIG, LAUNCH = parse_args()

import contextlib
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnist_jax.checkpoint import Checkpoints, Progress
from mnist_jax.errors import Interrupted, RunError
from mnist_jax.input_pipeline import describe_dataset, epoch_order, load_dataset
from mnist_jax.metrics import Metrics, Summary, summarize
from mnist_jax.processes import any_process, check_same
from mnist_jax.run_log import RunLog
from mnist_jax.runtime import Signals, exit_at_once, run_program
from mnist_jax.sharding import make_mesh, split_batches
from mnist_jax.steps import TrainState, train_steps
from mnist_jax.task import Task, evaluate_split, new_metrics, set_up
from mnist_jax.workdir import checkpoint_steps


class Result(NamedTuple):
    """What a run ends with."""

    dataset: str
    """The one really used: `mnist_sample` where `mnist` could not be had."""
    state: TrainState
    history: list[dict[str, Any]]
    """The records of metrics.jsonl, one an epoch; `running_train` is over the epoch, as it went."""
    train: Summary
    """Of the final parameters on the whole training set."""
    test: Summary
    workdir: Path


def train_and_evaluate(
    config: Config, workdir: str | Path | None = None, signals: Signals | None = None
) -> Result:
    """Trains as `config` says, or goes on with it, and leaves everything in a folder.

    A first SIGINT or SIGTERM, in the main thread, ends it once the chunk in flight is saved.

    Args:
        config: the run.
        workdir: the folder (see RunLog for what it gets). What is there is continued, to the same
            bits as if it had never stopped. None: a new runs/DATE-TIME.
        signals: for a program: they stay deferred after the run, until it exits, so that a
            repeated SIGTERM cannot change its exit code.

    Raises:
        ConfigError, RunError: as their messages say.
        Interrupted: by a signal.
    """
    own_signals = contextlib.nullcontext(signals) if signals else Signals()
    with own_signals as signals, RunLog(workdir, config) as log:
        dataset = load_dataset(log.with_recorded_dataset())
        origin = deciding_fields(config) | describe_dataset(dataset)
        task, state = set_up(config, dataset, make_mesh())
        dataset = dataset._replace(examples=task.examples)  # frees the host's copy
        folder = log.take_folder()
        signals.defer()
        check_same(
            vars(config)
            | {name: origin[name] for name in ("dataset", "crc32_of_examples")}
            | {"checkpoints": checkpoint_steps(folder), "data_dir": None, "manual_dir": None}
        )
        with Checkpoints(folder / "checkpoints", config.keep, origin) as checkpoints:
            progress = checkpoints.restore(Progress(state, new_metrics(task), []))
            log.start(dataset, task.model, progress.state, progress.history)
            checkpoints.tidy()
            try:
                state = train(task, progress, checkpoints, log, signals)
                train_summary, test_summary = (
                    evaluate_split(task, state, split) for split in ("train", "test")
                )
            except FloatingPointError as error:
                raise RunError(
                    f"{error}. Try a lower learning_rate, or warmup_steps. "
                    f"The last good checkpoint: {checkpoints.newest()}"
                ) from error
            checkpoints.wait()  # nothing is announced that is not on the disk
            log.finish(train_summary, test_summary)
    return Result(dataset.name, state, log.history, train_summary, test_summary, folder)


def train(
    task: Task, progress: Progress, checkpoints: Checkpoints, log: RunLog, signals: Signals
) -> TrainState:
    """Trains from `progress` to the last epoch; saves, shows and stops in between.

    Raises:
        RunError: a checkpoint cannot be saved.
        FloatingPointError: the loss is not finite.
        Interrupted: all is saved.
    """
    config, num_steps = task.config, task.num_steps
    # With a validation split, the test set is looked at once: after the last epoch.
    shown = "validation" if "validation" in task.splits else "test"
    state, metrics, _ = progress
    saved = int(state.step)
    for epoch in range(saved // num_steps + 1, config.num_epochs + 1):
        started = time.perf_counter()
        chunks = train_epoch(task, state, metrics, epoch)
        with log.bar(epoch, num_steps) as update:
            for state, metrics, step in chunks:
                update(step, summarize(metrics))
                log.check_folder()
                due = 0 < config.checkpoint_every_steps <= int(state.step) - saved
                if step < num_steps and (due or any_process(signals.received)):
                    checkpoints.save(Progress(state, metrics, log.history))
                    saved = int(state.step)
                    stop_if(signals, checkpoints, log)
        summaries = {"running_train": summarize(metrics), shown: evaluate_split(task, state, shown)}
        metrics = new_metrics(task)
        checkpoints.wait()
        log.finish_epoch(epoch, int(state.step), summaries, time.perf_counter() - started)
        checkpoints.save(Progress(state, metrics, log.history))
        saved = int(state.step)
        if epoch < config.num_epochs:
            stop_if(signals, checkpoints, log)
    return state


def train_epoch(
    task: Task, state: TrainState, metrics: Metrics, epoch: int
) -> Iterator[tuple[TrainState, Metrics, int]]:
    """Trains what is left of an epoch; yields state, metrics and step of the epoch after a chunk.

    Between two chunks is the place for all that happens outside the device.

    Raises:
        FloatingPointError: the loss is not finite; names the step.
    """
    order = epoch_order(task.order_key, epoch, len(task.splits["train"]), task.batch_size)
    order = split_batches(order, task.mesh)
    before = (epoch - 1) * task.num_steps
    for start in range(int(state.step) - before, task.num_steps, task.config.steps_per_chunk):
        stop = min(start + task.config.steps_per_chunk, task.num_steps)
        state, metrics = train_steps(
            state, metrics, task.examples, order, start, stop, model=task.model, tx=task.tx
        )
        finite = np.isfinite(np.asarray(metrics.loss_sum))
        if not finite.all():
            raise FloatingPointError(
                f"the loss is not finite at step {before + int(np.argmin(finite)) + 1}"
            )
        yield state, metrics, stop


def stop_if(signals: Signals, checkpoints: Checkpoints, log: RunLog) -> None:
    """Raises Interrupted if a signal came, once what was done till then is saved."""
    if any_process(signals.received):
        checkpoints.wait()
        log.check_folder()
        folder = shlex.quote(str(log.workdir))
        raise Interrupted(f"interrupted; to go on, name the folder: --workdir {folder}")


def run(config: Config, launch: Launch, signals: Signals | None = None) -> int:
    """The program: `train_and_evaluate` with errors as messages. Returns the exit code."""

    def train_all() -> None:
        train_and_evaluate(config, launch.workdir, signals)

    return run_program(train_all, launch)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    exit_at_once(run(CONFIG, LAUNCH, Signals()))  # pyright: ignore[reportPossiblyUnboundVariable]
