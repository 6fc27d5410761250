"""What stays the same throughout a run, and what each part of one begins with."""

from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Int, PRNGKeyArray

from mnist_jax.config import Config
from mnist_jax.input_pipeline import Dataset, batch_rows
from mnist_jax.metrics import Metrics, Summary, summarize
from mnist_jax.model import make_model
from mnist_jax.optimizer import make_optimizer
from mnist_jax.sharding import check_batch_size, replicate, split_batches
from mnist_jax.steps import Examples, TrainState, empty_metrics, evaluate, init_state


class Task(NamedTuple):
    """What stays the same throughout a run."""

    config: Config
    mesh: Mesh
    examples: Examples
    """A copy on each device."""
    splits: dict[str, range]
    batch_size: int
    num_steps: int
    """Of an epoch."""
    model: nn.Module
    tx: optax.GradientTransformation
    order_key: PRNGKeyArray


def set_up(config: Config, dataset: Dataset, mesh: Mesh) -> tuple[Task, TrainState]:
    """All that a run begins with, from its config and dataset alone, placed on the devices.

    Raises:
        ConfigError: the devices cannot share a batch equally.
    """
    task = make_task(config, dataset, mesh)
    check_batch_size(task.batch_size, mesh)
    init_key, _ = split_seed(config.seed)
    num_pixels = dataset.examples.images.shape[1]
    state = init_state(init_key, num_pixels, model=task.model, tx=task.tx)
    return task, replicate(state, mesh)


def make_task(config: Config, dataset: Dataset, mesh: Mesh) -> Task:
    """All but the state."""
    batch_size, num_steps = plan_batches(config, len(dataset.splits["train"]))
    return Task(
        config=config,
        mesh=mesh,
        examples=replicate(dataset.examples, mesh),
        splits=dataset.splits,
        batch_size=batch_size,
        num_steps=num_steps,
        model=make_model(config),
        tx=make_optimizer(config, config.num_epochs * num_steps),
        order_key=split_seed(config.seed)[1],
    )


def plan_batches(config: Config, num_train: int) -> tuple[int, int]:
    """The batch size, and how many steps an epoch has: the last batch may be short."""
    batch_size = min(config.batch_size, num_train)
    return batch_size, -(-num_train // batch_size)


def split_seed(seed: int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """The keys of the first parameters and of the orders of the epochs."""
    init_key, order_key = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
    return init_key, order_key


def new_metrics(task: Task) -> Metrics:
    """The metrics of an epoch that has not begun."""
    return replicate(empty_metrics(task.num_steps), task.mesh)


def evaluate_split(task: Task, state: TrainState, split: str) -> Summary:
    """The loss and accuracy of `state` over a split, each example counted once."""
    order = split_batches(order_of_split(task, split), task.mesh)
    summary = summarize(evaluate(state.params, task.examples, order, model=task.model))
    if not np.isfinite(summary.loss):
        raise FloatingPointError(f"the loss is not finite after step {int(state.step)}")
    return summary


def order_of_split(task: Task, split: str) -> Int[np.ndarray, "batches batch"]:
    """The rows of a split; as many batches for each, the rest empty: evaluate compiles once."""
    num_batches = -(-len(task.examples.labels) // task.batch_size)
    return batch_rows(np.array(task.splits[split]), task.batch_size, num_batches)
