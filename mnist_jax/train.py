"""Trains and evaluates: `python -m mnist_jax.train --help`, or `train_and_evaluate` from Python."""

import signal
import sys

from mnist_jax.config import Config, deciding_fields, exit_with_usage_error, parse_args

if __name__ == "__main__":  # before jax is imported: --help and a wrong flag are answered at once
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends an import without a traceback
    CONFIG, WORKDIR = parse_args()

import contextlib
import re
import shlex
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from mnist_jax.checkpoint import Checkpoints, Progress
from mnist_jax.errors import ConfigError, Interrupted, RunError
from mnist_jax.input_pipeline import Dataset, batch_rows, epoch_order, load_dataset
from mnist_jax.metrics import Metrics, Summary, summarize
from mnist_jax.model import make_model
from mnist_jax.optimizer import make_optimizer
from mnist_jax.run_log import RunLog
from mnist_jax.runtime import (
    Signals,
    check_device,
    enable_compilation_cache,
    exit_at_once,
    print_error,
    show_log_messages,
)
from mnist_jax.steps import Examples, TrainState, empty_metrics, evaluate, init_state, train_steps

INTERRUPTED = 75  # EX_TEMPFAIL: whoever started the program may start it again


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


class Task(NamedTuple):
    """What stays the same throughout a run."""

    config: Config
    examples: Examples
    """On the device."""
    splits: dict[str, range]
    batch_size: int
    num_steps: int
    """Of an epoch."""
    model: nn.Module
    tx: optax.GradientTransformation
    order_key: PRNGKeyArray


def train_and_evaluate(
    config: Config, workdir: str | Path | None = None, signals: Signals | None = None
) -> Result:
    """Trains as `config` says, or goes on with it, and leaves everything in a folder.

    A first SIGINT or SIGTERM, in the main thread, ends it once the chunk in flight is saved.

    Args:
        config: the run.
        workdir: the folder (see RunLog for what it gets). What is there is continued, to the same
            bits as if it had never stopped. None: a new runs/DATE-TIME.
        signals: for a program: they stay deferred, so that a repeated SIGTERM cannot change its
            exit code.

    Raises:
        ConfigError, RunError: as their messages say.
        Interrupted: by a signal.
    """
    own_signals = contextlib.nullcontext(signals) if signals else Signals()
    with own_signals as signals, RunLog(workdir, config) as log:
        dataset = load_dataset(log.with_recorded_dataset())
        origin = deciding_fields(config) | describe_dataset(dataset)
        # Replaced, so that the host's copy is freed: 220 MB.
        dataset = dataset._replace(examples=jax.device_put(dataset.examples))
        task, state = set_up(config, dataset)
        directory = log.take_folder() / "checkpoints"
        signals.defer()
        with Checkpoints(directory, config.keep, origin) as checkpoints:
            progress = checkpoints.restore(Progress(state, empty_metrics(task.num_steps), []))
            log.start(dataset, task.model, progress.state, progress.history)
            checkpoints.tidy()
            try:
                state = train(task, progress, checkpoints, log, signals)
                splits = ("train", "test")
                train_summary, test_summary = (evaluate_split(task, state, s) for s in splits)
            except FloatingPointError as error:
                raise RunError(
                    f"{error}. Try a lower learning_rate, or warmup_steps. "
                    f"The last good checkpoint: {checkpoints.newest()}"
                ) from error
            checkpoints.wait()  # nothing is announced that is not on the disk
            log.finish(train_summary, test_summary)
    return Result(dataset.name, state, log.history, train_summary, test_summary, log.workdir)


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What tells a dataset from another: its name, its sizes, a checksum of its examples."""
    checksum = 0
    for array in dataset.examples:
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    sizes = {f"{split}_examples": len(rows) for split, rows in dataset.splits.items()}
    return {"dataset": dataset.name, **sizes, "crc32_of_examples": checksum}


def set_up(config: Config, dataset: Dataset) -> tuple[Task, TrainState]:
    """All that a run begins with, from its config and dataset alone."""
    num_train = len(dataset.splits["train"])
    batch_size = min(config.batch_size, num_train)
    num_steps = -(-num_train // batch_size)  # rounded up: the last batch is short
    model = make_model(config)
    tx = make_optimizer(config, config.num_epochs * num_steps)
    init_key, order_key = jax.random.split(jax.random.key(config.seed, impl="threefry2x32"))
    state = init_state(init_key, dataset.examples.images.shape[1], model=model, tx=tx)
    examples = jax.device_put(dataset.examples)
    splits = dataset.splits
    return Task(config, examples, splits, batch_size, num_steps, model, tx, order_key), state


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
                if step < num_steps and (due or signals.received):
                    checkpoints.save(Progress(state, metrics, log.history))
                    saved = int(state.step)
                    stop_if(signals, checkpoints, log)
        summaries = {"running_train": summarize(metrics), shown: evaluate_split(task, state, shown)}
        metrics = empty_metrics(num_steps)
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


def evaluate_split(task: Task, state: TrainState, split: str) -> Summary:
    """The loss and accuracy of `state` over a split, each example counted once."""
    # As many batches for every split, the rest of them empty: evaluate then compiles once.
    num_batches = -(-len(task.examples.labels) // task.batch_size)
    order = batch_rows(np.array(task.splits[split]), task.batch_size, num_batches)
    summary = summarize(evaluate(state.params, task.examples, order, model=task.model))
    if not np.isfinite(summary.loss):
        raise FloatingPointError(f"the loss is not finite after step {int(state.step)}")
    return summary


def stop_if(signals: Signals, checkpoints: Checkpoints, log: RunLog) -> None:
    """Raises Interrupted if a signal came, once what was done till then is saved."""
    if signals.received:
        checkpoints.wait()
        log.check_folder()
        folder = shlex.quote(str(log.workdir))
        raise Interrupted(f"interrupted; to go on, name the folder: --workdir {folder}")


def run(config: Config, workdir: Path | None, signals: Signals | None = None) -> int:
    """The program: `train_and_evaluate` with errors as messages. Returns the exit code."""
    show_log_messages()
    try:
        check_device()
        enable_compilation_cache()
        train_and_evaluate(config, workdir, signals)
    except ConfigError as error:
        exit_with_usage_error(str(error))
    except (RunError, OSError) as error:
        print_error(f"error: {error}")
        return 1
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        memory = re.search("RESOURCE_EXHAUSTED|out of memory", reason, re.IGNORECASE)
        if not memory and not isinstance(error, MemoryError):
            raise
        print_error(f"error: not enough memory for the network, the batch or the data: {reason}")
        return 1
    except Interrupted as error:
        print_error(error)
        return INTERRUPTED
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    exit_at_once(run(CONFIG, WORKDIR, Signals()))  # pyright: ignore[reportPossiblyUnboundVariable]
