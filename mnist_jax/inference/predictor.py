"""A trained network: finds its run, reads its parameters, and predicts."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8
from scipy.special import softmax

from mnist_jax.config import CONFIG_FILE, Config, deciding_fields, load_config
from mnist_jax.data.pipeline import NUM_PIXELS, Dataset, fingerprint, normalize, plan_batches
from mnist_jax.model import make_model, predict_logits
from mnist_jax.optimizer import make_optimizer
from mnist_jax.runtime.checkpoint import Checkpoints
from mnist_jax.runtime.devices import check_platform
from mnist_jax.runtime.errors import RunError
from mnist_jax.runtime.workdir import RUN_FILE, RunDirectory, differences, read_run_info
from mnist_jax.steps import TrainState, init_state

log = logging.getLogger(__name__)
BATCH_SIZE = 256  # fixed: one compilation, and the result of an image does not depend on others
DIGIT_DATASETS = "mnist", "mnist_sample"

jit_logits = jax.jit(predict_logits, static_argnames="model")


@dataclasses.dataclass(frozen=True)
class Predictor:
    """The network of a run, with the parameters of its newest intact checkpoint."""

    workdir: Path
    config: Config  # its dataset is the one that the run was trained on
    step: int  # the number of training steps
    model: nn.Module
    params: PyTree[Float[Array, "..."]]
    history: list[dict[str, Any]]  # the records of metrics.jsonl up to this step

    def logits(self, rows: Float[np.ndarray, "n pixels"]) -> Float[np.ndarray, "n classes"]:
        """The logits of images with pixels in [0, 1]."""
        outputs = []
        for start in range(0, max(len(rows), 1), BATCH_SIZE):
            batch = rows[start : start + BATCH_SIZE]
            padded = np.pad(batch, ((0, BATCH_SIZE - len(batch)), (0, 0)))
            outputs.append(np.asarray(jit_logits(self.params, padded, model=self.model)))
        return np.concatenate(outputs)[: len(rows)]

    def probabilities(self, images: UInt8[np.ndarray, "n 28 28"]) -> Float[np.ndarray, "n classes"]:
        """The probabilities of the classes, for images that are light on dark, 0 to 255."""
        return softmax(self.logits(normalize(images)), axis=1)


def find_run(workdir: str | Path | None = None) -> Path:
    """The run directory `workdir`; by default, the one under runs/ that finished last."""
    if workdir is None:
        finished = sorted(Path("runs").glob("*/result.json"), key=lambda file: file.stat().st_mtime)
        if not finished:
            raise RunError(
                "no run has finished under runs/; train one: python -m mnist_jax.train, "
                "or name another run directory: --workdir DIR"
            )
        return finished[-1].parent
    workdir = Path(os.path.expanduser(workdir))
    if not (workdir / RUN_FILE).is_file():
        raise RunError(f"{workdir} holds no run; train one: python -m mnist_jax.train")
    return workdir


def read_config(workdir: Path) -> Config:
    """The config of a run, with the dataset that the run was trained on."""
    config, info = load_config(workdir / CONFIG_FILE), read_run_info(workdir)
    return dataclasses.replace(config, dataset=info["fingerprint"]["dataset"])


def load_predictor(
    workdir: str | Path | None = None, dataset: Dataset | None = None, only_digits: bool = False
) -> Predictor:
    """Loads the network of a run, which may be in training. RunError if it is unusable.

    Args:
        workdir: the run directory; by default, the one under runs/ that finished last.
        dataset: if given, checks that the run was trained on it.
        only_digits: checks that the run was trained on digits.
    """
    check_platform()
    workdir = find_run(workdir)
    run_dir, config = RunDirectory.open_read_only(workdir), read_config(workdir)
    if only_digits and config.dataset not in DIGIT_DATASETS:
        raise RunError(
            f"{workdir} was trained on {config.dataset}; name a run on digits: --workdir DIR"
        )
    saved = run_dir.info["fingerprint"]
    now = fingerprint(config, dataset) if dataset else saved | deciding_fields(config)
    if different := differences(saved, now):
        raise RunError(f"cannot use {workdir}: {different}")
    with Checkpoints(run_dir) as checkpoints:
        restored = checkpoints.restore(_state_template(config, saved["train_examples"]))
    if restored is None:
        raise RunError(f"{workdir} has no checkpoint yet; wait until its first epoch is over")
    step, params = int(restored.tree.step), jax.device_put(restored.tree.params)
    log.info(f"Using {workdir}, after step {step:,}")
    return Predictor(
        workdir, config, step, make_model(config), params, restored.progress["history"]
    )


def _state_template(config: Config, num_train: int) -> TrainState:
    """The shapes of a run's state: nothing is computed."""
    _, num_steps = plan_batches(config, num_train)
    tx = make_optimizer(config, config.num_epochs * num_steps)
    model, key = make_model(config), jax.random.key(0)
    return jax.eval_shape(lambda: init_state(key, NUM_PIXELS, model=model, tx=tx))
