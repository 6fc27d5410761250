"""Trains and evaluates: `python -m mnist_jax.train`, or `train_and_evaluate` from Python."""

import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Exit silently on Ctrl-C during start-up.

import flax.linen as nn
import numpy as np
import optax
from jax.sharding import Mesh

from mnist_jax.config import CONFIG_FILE, Config, RunOptions
from mnist_jax.data import pipeline
from mnist_jax.model import make_model
from mnist_jax.optimizer import make_optimizer
from mnist_jax.runtime import devices
from mnist_jax.runtime.checkpoint import Checkpoints
from mnist_jax.runtime.cli import Folder, LaunchOptions, require_packages
from mnist_jax.runtime.errors import Interrupted, RunError, UsageError
from mnist_jax.runtime.metric_writer import MetricWriter, Totals
from mnist_jax.runtime.program import Signals, console, prepare_process, run_command
from mnist_jax.runtime.workdir import RunDirectory
from mnist_jax.steps import Metrics, TrainState, evaluate, init_state, split_seed, train_steps

ADVICE = "Lower learning_rate, or set warmup_steps"


class Setup(NamedTuple):
    """What stays the same throughout a run. Every device has a copy of the examples."""

    config: Config
    dataset: pipeline.Dataset
    mesh: Mesh
    batch_size: int
    num_steps: int  # per epoch
    model: nn.Module
    tx: optax.GradientTransformation


class Run(NamedTuple):
    """What a run writes to, and what can stop it."""

    writer: MetricWriter
    checkpoints: Checkpoints
    signals: Signals


class Result(NamedTuple):
    """What a run ends with; `train` and `test` are of the final parameters."""

    dataset: str  # mnist_sample if mnist could not be loaded
    state: TrainState
    history: list[dict[str, Any]]  # one record per epoch, as in metrics.jsonl
    train: Totals
    test: Totals
    workdir: Path


def train_and_evaluate(config: Config, workdir: str | Path | None = None) -> Result:
    """Trains as `config` says, or resumes the run in `workdir` bit for bit.

    By default, `workdir` is a new directory runs/DATE-TIME. After SIGINT or SIGTERM, the run
    finishes its chunk of steps, saves everything, and raises Interrupted.
    """
    if config.tensorboard:
        require_packages("tensorboard", "tensorboardX")
    dataset = pipeline.load_dataset(config, workdir)
    fingerprint = pipeline.fingerprint(config, dataset)
    setup = set_up(config, dataset, devices.make_mesh())
    del dataset  # frees the host's copy if the devices have their own memory
    state = init_train_state(setup)
    # The processes must have the same settings; only the directories of data may differ.
    devices.check_same(vars(config) | {"data_dir": None, "manual_dir": None})
    with (
        Signals() as signals,
        RunDirectory(workdir, fingerprint) as run_dir,  # refuses a different run
        Checkpoints(run_dir, config.keep) as checkpoints,
    ):
        progress: dict[str, Any] = {"running_train": {}, "history": []}
        if restored := checkpoints.restore(state):
            state, progress = restored
        devices.check_same({"restored step": int(state.step)})
        running, history = Totals(**progress["running_train"]), progress["history"]
        announce(setup, state, run_dir)
        with MetricWriter(run_dir.path, history, config.num_epochs, config.tensorboard) as writer:
            state = train(setup, Run(writer, checkpoints, signals), state, running)
        train_totals = evaluate_split(setup, state, "train")
        test_totals = evaluate_split(setup, state, "test")
        checkpoints.wait()  # the result is announced once the parameters are saved
        finish(run_dir, train_totals, test_totals)
    return Result(setup.dataset.name, state, history, train_totals, test_totals, run_dir.path)


def set_up(config: Config, dataset: pipeline.Dataset, mesh: Mesh) -> Setup:
    """Builds the model and the optimizer, and puts the examples on the devices."""
    batch_size, num_steps = pipeline.plan_batches(config, len(dataset.splits["train"]))
    dataset = dataset._replace(examples=devices.replicate(dataset.examples, mesh))
    tx = make_optimizer(config, config.num_epochs * num_steps)
    return Setup(config, dataset, mesh, batch_size, num_steps, make_model(config), tx)


def init_train_state(setup: Setup) -> TrainState:
    """The initial state, on every device. Raises UsageError if they cannot share a batch."""
    batch_size, size = setup.batch_size, setup.mesh.size
    if batch_size % size:
        raise UsageError(f"batch_size is {batch_size}; {size} devices need a multiple of {size}")
    init_key, _ = split_seed(setup.config.seed)
    state = init_state(init_key, pipeline.NUM_PIXELS, model=setup.model, tx=setup.tx)
    return devices.replicate(state, setup.mesh)


def announce(setup: Setup, state: TrainState, run_dir: RunDirectory) -> None:
    """Prints and records the data, the model, the devices, and where the run starts."""
    config, dataset, step = setup.config, setup.dataset, int(state.step)
    versions = devices.package_versions("mnist_jax", "jax")
    sizes = {split: len(rows) for split, rows in dataset.splits.items()}
    hardware = devices.describe_devices()
    counts = ", ".join(f"{size:,} {split}" for split, size in sizes.items())
    console.print(
        f"mnist_jax {versions['mnist_jax']}, jax {versions['jax']}, {hardware}\n"
        f"{dataset.name}: {counts} images\n"
        f"{type(setup.model).__name__}: {optax.tree.size(state.params):,} parameters; "
        f"{config.optimizer}, batches of {setup.batch_size}, seed {config.seed}"
    )
    run_dir.begin(step, config.num_epochs * setup.num_steps)
    run_dir.write_json(CONFIG_FILE, dataclasses.asdict(config))
    run_dir.update(dataset=dataset.name, **sizes, **versions, devices=hardware)


def train(setup: Setup, run: Run, state: TrainState, running: Totals) -> TrainState:
    """Trains from `state` to the last epoch; evaluates, writes and saves after each epoch.

    `running` has the totals of the epoch in progress: of each batch, before its update.
    """
    # With a validation split, the test set is used only once, after the last epoch.
    shown = "validation" if "validation" in setup.dataset.splits else "test"
    num_epochs = setup.config.num_epochs
    for epoch in range(len(run.writer.history) + 1, num_epochs + 1):
        started = time.perf_counter()
        state, running = train_and_save(setup, run, epoch, state, running)
        shown_totals = evaluate_split(setup, state, shown)
        run.checkpoints.wait()  # metrics.jsonl is at most one epoch ahead of the checkpoints
        record = {"epoch": epoch, "step": int(state.step), **running.as_record("running_train")}
        seconds = time.perf_counter() - started
        run.writer.write(record | shown_totals.as_record(shown) | {"seconds": seconds})
        running = Totals()
        # After the last epoch, only the final evaluation is left: a signal does not stop it.
        is_stopping = epoch < num_epochs and run.signals.received_anywhere()
        save(run, state, running, is_stopping)
    return state


def train_and_save(
    setup: Setup, run: Run, epoch: int, state: TrainState, running: Totals
) -> tuple[TrainState, Totals]:
    """Trains the rest of an epoch. After each chunk, saves if that is due or a signal arrived."""
    with run.writer.progress_bar(epoch, setup.num_steps) as update:
        chunks = train_epoch(setup, state, epoch)
        for state, metrics in chunks:
            step, running = int(state.step), running.add(*metrics)
            update(step - (epoch - 1) * setup.num_steps, running.as_record("running_train"))
            is_due = 0 < setup.config.checkpoint_every_steps <= step - run.checkpoints.last_step
            is_stopping = run.signals.received_anywhere()
            # After the last chunk, `train` saves: the epoch must be evaluated first.
            if step < epoch * setup.num_steps and (is_due or is_stopping):
                save(run, state, running, is_stopping)
    return state, running


def save(run: Run, state: TrainState, running: Totals, is_stopping: bool) -> None:
    """Saves the state and all metrics so far. Raises Interrupted if a signal stops the run."""
    progress = {"running_train": dataclasses.asdict(running), "history": [*run.writer.history]}
    run.checkpoints.save(int(state.step), state, progress)
    if is_stopping:
        run.checkpoints.wait()
        raise Interrupted(run.checkpoints.run_dir.path)


def train_epoch(
    setup: Setup, state: TrainState, epoch: int
) -> Iterator[tuple[TrainState, Metrics]]:
    """Trains the rest of an epoch; yields the state and the metrics of each chunk of steps."""
    num_train, steps_before = len(setup.dataset.splits["train"]), (epoch - 1) * setup.num_steps
    _, order_key = split_seed(setup.config.seed)
    order = pipeline.epoch_order(order_key, epoch, num_train, setup.batch_size)
    start, chunk_size = int(state.step) - steps_before, setup.config.steps_per_chunk
    while start < setup.num_steps:
        end = (start // chunk_size + 1) * chunk_size  # a multiple, also in a resumed epoch
        rows = devices.split_batches(order[start:end], setup.mesh)
        state, metrics = train_steps(
            state, setup.dataset.examples, rows, model=setup.model, tx=setup.tx
        )
        is_finite = np.isfinite(np.asarray(metrics.loss_sum))
        if not is_finite.all():
            step = steps_before + start + int(np.argmin(is_finite)) + 1
            raise RunError(f"the loss is not finite at step {step}. {ADVICE}")
        yield state, metrics
        start = end


def evaluate_split(setup: Setup, state: TrainState, split: str) -> Totals:
    """The loss and accuracy of `state` on a split. Every example counts once."""
    rows = pipeline.batch_rows(setup.dataset.splits[split], setup.batch_size)
    rows = devices.split_batches(rows, setup.mesh)
    metrics = evaluate(state.params, setup.dataset.examples, rows, model=setup.model)
    totals = Totals().add(*metrics)
    if not np.isfinite(totals.loss):
        raise RunError(f"the loss is not finite after step {int(state.step)}. {ADVICE}")
    return totals


def finish(run_dir: RunDirectory, train: Totals, test: Totals) -> None:
    """Records and prints the result."""
    run_dir.write_json("result.json", train.as_record("train") | test.as_record("test"))
    gap = 100 * (train.accuracy - test.accuracy)
    console.print(
        f"Test accuracy: {test}\n"
        f"Accuracy of the final parameters on the training set: {train}\n"
        f"Gap: {gap:.2f} points{' of overfitting' if gap > 0 else ''}\n"
        f"Run directory: {run_dir.path}"
    )


@dataclasses.dataclass(frozen=True)
class Options(LaunchOptions, RunOptions):
    """Train the network, evaluate it and save it."""

    workdir: Folder = None
    """The run directory, to create or to resume. Without it: a new runs/DATE-TIME."""


def main(options: Options) -> None:
    """Trains as the command line says."""
    prepare_process(options)
    train_and_evaluate(options.config, options.workdir)


if __name__ == "__main__":
    run_command(Options, main, "python -m mnist_jax.train")
