"""A trained network: its run is found, its parameters are read, and it is asked."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from mnist_jax.checkpoint import Checkpoints, Progress
from mnist_jax.config import CONFIG_FILE, Config, deciding_fields, load_config
from mnist_jax.errors import RunError
from mnist_jax.input_pipeline import Dataset, describe_dataset, normalize
from mnist_jax.metrics import Metrics
from mnist_jax.model import make_model, predict_logits, predict_probabilities
from mnist_jax.optimizer import make_optimizer
from mnist_jax.runtime import check_platform
from mnist_jax.steps import TrainState, empty_metrics, init_state
from mnist_jax.task import plan_batches
from mnist_jax.workdir import read_object

log = logging.getLogger(__name__)
BATCH_SIZE = 256  # always: it compiles once, and an image gets the same bits in any company
NUM_PIXELS = 28 * 28
DIGITS = ("mnist", "mnist_sample")  # the datasets of digits

jit_logits = jax.jit(predict_logits, static_argnames="model")
jit_probabilities = jax.jit(predict_probabilities, static_argnames="model")


class Trained(NamedTuple):
    """What a run has learnt."""

    workdir: Path
    config: Config
    """Its dataset is the one really used."""
    step: int
    model: nn.Module
    params: PyTree[Float[Array, "..."]]
    history: list[dict[str, Any]]
    """The records of metrics.jsonl, one an epoch, till this step."""


def find_run(workdir: Path | None) -> Path:
    """The folder `workdir` or, if it is None, that of the run under runs/ that finished last.

    Raises:
        RunError: it holds no run; or none has finished.
    """
    if workdir is None:
        finished = list(Path("runs").glob("*/result.json"))
        if not finished:
            raise RunError(
                "no run has finished under runs/; make one: python -m mnist_jax.train, "
                "or name the folder of another: --workdir DIR"
            )
        return max(finished, key=lambda path: path.stat().st_mtime).parent
    workdir = Path(os.path.expanduser(workdir))
    if not (workdir / CONFIG_FILE).is_file():
        raise RunError(f"{workdir} holds no run; make one: python -m mnist_jax.train")
    return workdir


def read_config(workdir: Path) -> Config:
    """The config of a run, with the dataset that it is really on.

    Raises:
        ConfigError, RunError: its config.json or run.json is damaged.
    """
    return replace(load_config(workdir / CONFIG_FILE), dataset=read_record(workdir)["dataset"])


def read_record(workdir: Path) -> dict[str, Any]:
    """What run.json holds: the dataset, the versions and the devices that the run has had.

    Raises:
        RunError: it is missing or damaged.
    """
    record = read_object(workdir / "run.json")
    if not {"dataset", "train"} <= {*record}:
        raise RunError(f"{workdir / 'run.json'} is missing or damaged")
    return record


def load_trained(workdir: Path, dataset: Dataset | None = None) -> Trained:
    """The parameters in the newest intact checkpoint of a run, which may still be going on.

    Nothing in the folder changes. If there is a `dataset`, it must be the run's.

    Raises:
        ConfigError, RunError: the run's files are damaged, or it has no checkpoint yet; or JAX
            has no device.
    """
    check_platform(None)
    config, num_train = read_config(workdir), read_record(workdir)["train"]
    model = make_model(config)
    template = _shapes(config, model, num_train)
    data = describe_dataset(dataset) if dataset else {"train_examples": num_train}
    folder, origin = workdir / "checkpoints", deciding_fields(config) | data
    with Checkpoints(folder, config.keep, origin, read_only=True) as checkpoints:
        restored = checkpoints.restore(template)
    if restored is template:
        raise RunError(f"{workdir} has no checkpoint yet")
    state = restored.state
    log.info(f"Using {workdir}, after step {int(state.step):,}")
    params = jax.device_put(state.params)
    return Trained(workdir, config, int(state.step), model, params, restored.history)


def load_reader(workdir: Path | None) -> Trained:
    """The network of the run that `find_run` finds, if it knows digits.

    Raises:
        ConfigError, RunError: there is none, or it has learnt something else.
    """
    folder = find_run(workdir)
    dataset = read_config(folder).dataset
    if dataset not in DIGITS:
        raise RunError(f"{folder} was trained on {dataset}; name a run on digits: --workdir DIR")
    return load_trained(folder)


def _shapes(config: Config, model: nn.Module, num_train: int) -> Progress:
    """The shapes of a checkpoint: those of arrays that are not computed."""
    _, num_steps = plan_batches(config, num_train)
    tx = make_optimizer(config, config.num_epochs * num_steps)

    def begin(key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        return init_state(key, NUM_PIXELS, model=model, tx=tx), empty_metrics(num_steps)

    state, metrics = jax.eval_shape(begin, jax.random.key(0))
    return Progress(state, metrics, [])


def predict(
    trained: Trained, images: UInt8[np.ndarray, "n 28 28"]
) -> Float[np.ndarray, "n classes"]:
    """The probabilities of the classes of each image: grey pixels 0..255, light on dark."""
    return apply_in_batches(jit_probabilities, trained, normalize(images))


def apply_in_batches(
    function: Callable[..., Any], trained: Trained, rows: Float[Array | np.ndarray, "n pixels"]
) -> Float[np.ndarray, "n classes"]:
    """A jitted `function(params, rows, model=model)` of rows with pixels in [0, 1], by batches."""
    outputs = []
    for start in range(0, max(len(rows), 1), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        padded = np.pad(batch, ((0, BATCH_SIZE - len(batch)), (0, 0)))
        outputs.append(np.asarray(function(trained.params, padded, model=trained.model)))
    return np.concatenate(outputs)[: len(rows)]
