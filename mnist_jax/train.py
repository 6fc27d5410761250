"""Trains and evaluates: `python -m mnist_jax.train --help`, or `train_and_evaluate` from Python."""

import signal
import sys

from mnist_jax.config import Config, exit_with_usage_error, parse_args

if __name__ == "__main__":  # before jax is imported: --help and a wrong flag are answered at once
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends an import without a traceback
    CONFIG, WORKDIR = parse_args()

import contextlib
import functools
import hashlib
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Int

from mnist_jax import checkpoint
from mnist_jax.errors import ConfigError, RunError
from mnist_jax.input_pipeline import batch_rows, epoch_order, load_dataset
from mnist_jax.metrics import Summary, summarize
from mnist_jax.model import make_model
from mnist_jax.optimizer import make_optimizer
from mnist_jax.run_log import RunLog, show_log_messages
from mnist_jax.steps import Examples, TrainState, empty_metrics, evaluate, init_state, train_steps


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


def train_and_evaluate(config: Config, workdir: str | Path | None = None) -> Result:
    """Trains as `config` says, and leaves everything in a new folder.

    Args:
        config: the run.
        workdir: the folder (see RunLog for what it gets). None: runs/DATE-TIME.

    Raises:
        ConfigError, RunError: as their messages say.
    """
    with contextlib.closing(RunLog(workdir, config)) as log:
        dataset = load_dataset(config)
        splits, num_train = dataset.splits, len(dataset.splits["train"])
        batch_size = min(config.batch_size, num_train)
        num_steps = -(-num_train // batch_size)  # rounded up: the last batch is short
        model = make_model(config)
        tx = make_optimizer(config, config.num_epochs * num_steps)
        init_key, order_key = jax.random.split(jax.random.key(config.seed, impl="threefry2x32"))
        state = init_state(init_key, dataset.examples.images.shape[1], model=model, tx=tx)
        examples = jax.device_put(dataset.examples)
        evaluate_split = functools.partial(evaluate_rows, examples, batch_size, model)
        # With a validation split, the test set is looked at once: after the last epoch.
        shown = "validation" if "validation" in splits else "test"
        log.start(dataset, state, model)
        for epoch in range(1, config.num_epochs + 1):
            started = time.perf_counter()
            order = epoch_order(order_key, epoch, num_train, batch_size)
            with log.bar(epoch, num_steps) as update:
                state, running = train_epoch(state, examples, order, config, model, tx, update)
            summaries = {"running_train": running, shown: evaluate_split(state, splits[shown])}
            log.finish_epoch(epoch, int(state.step), summaries, time.perf_counter() - started)
        checkpoint.save(log.workdir / "checkpoints", state)
        train, test = (evaluate_split(state, splits[split]) for split in ("train", "test"))
        log.finish(train, test)
    return Result(dataset.name, state, log.history, train, test, log.workdir)


def train_epoch(
    state: TrainState,
    examples: Examples,
    order: Int[np.ndarray, "steps batch"],
    config: Config,
    model: nn.Module,
    tx: optax.GradientTransformation,
    update: Callable[[int, Summary], None],
) -> tuple[TrainState, Summary]:
    """Trains an epoch, chunk by chunk; returns the state after it and its running metrics.

    Between two chunks is the place for all that happens outside the device: there `update` is
    called with the steps of the epoch so far and their metrics.

    Raises:
        RunError: the loss is not finite; names the step.
    """
    metrics = empty_metrics(len(order))
    for start in range(0, len(order), config.steps_per_chunk):
        stop = min(start + config.steps_per_chunk, len(order))
        state, metrics = train_steps(
            state, metrics, examples, order, start, stop, model=model, tx=tx
        )
        finite = np.isfinite(np.asarray(metrics.loss_sum))
        if not finite.all():
            raise not_finite(int(state.step) - stop + int(np.argmin(finite)) + 1)
        update(stop, summarize(metrics))
    return state, summarize(metrics)


def evaluate_rows(
    examples: Examples, batch_size: int, model: nn.Module, state: TrainState, rows: range
) -> Summary:
    """The loss and accuracy of `state` over `rows` of the examples, each counted once."""
    # As many batches for every split, the rest of them empty: evaluate then compiles once.
    num_batches = -(-len(examples.labels) // batch_size)
    order = batch_rows(np.array(rows), batch_size, num_batches)
    summary = summarize(evaluate(state.params, examples, order, model=model))
    if not np.isfinite(summary.loss):
        raise not_finite(int(state.step))
    return summary


def not_finite(step: int) -> RunError:
    """The error of a run that has diverged."""
    hint = "Try a lower learning_rate, or warmup_steps."
    return RunError(f"the loss is not finite at step {step}. {hint}")


def enable_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless JAX is told already where to keep them.

    One folder per kind of processor: XLA compiles for the one at hand, and a home directory may
    be shared by unlike machines.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cpu = [platform.machine(), platform.processor()]
    if os.path.exists("/proc/cpuinfo"):
        lines = sorted(set(Path("/proc/cpuinfo").read_text().splitlines()))
        cpu += [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    root = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    path = Path(root) / "mnist_jax" / hashlib.sha256(repr(cpu).encode()).hexdigest()[:16]
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def run(config: Config, workdir: Path | None) -> int:
    """The program: `train_and_evaluate` with errors as messages. Returns the exit code."""
    show_log_messages()
    try:
        check_device()
        enable_compilation_cache()
        train_and_evaluate(config, workdir)
    except ConfigError as error:
        exit_with_usage_error(str(error))
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except jax.errors.JaxRuntimeError as error:
        if not re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
            raise
        print(f"error: too large a network or batch for the device: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def check_device() -> None:
    """Raises RunError where JAX cannot have the platform that it is told to use."""
    try:
        jax.devices()
    except Exception as error:  # of what kind depends on the platform
        platforms = os.environ.get("JAX_PLATFORMS")
        raise RunError(f"JAX finds no device (JAX_PLATFORMS is {platforms}): {error}") from error


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run(CONFIG, WORKDIR))  # pyright: ignore[reportPossiblyUnboundVariable]
