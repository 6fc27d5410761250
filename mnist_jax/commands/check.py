"""`python -m mnist_jax check`: does this machine, with this version of JAX, give known numbers?"""

import dataclasses
import json
import sys
import traceback
from typing import Any

import numpy as np

from mnist_jax.config import Config, RunOptions, reject
from mnist_jax.data.pipeline import load_dataset
from mnist_jax.runtime import devices
from mnist_jax.runtime.cli import Platform
from mnist_jax.runtime.errors import RunError, UsageError
from mnist_jax.runtime.metric_writer import Totals
from mnist_jax.runtime.program import console
from mnist_jax.train import evaluate_split, init_train_state, set_up, train_epoch

# What the default config gives, with float32 products on a CPU: the mean loss of each of the first
# batches, before its step; and the test accuracy, with two standard deviations between seeds.
LOSSES = {
    "mnist": [2.3423, 1.8951, 1.4807, 1.3682, 1.1534, 1.0463, 0.8619, 0.7776, 0.7998, 0.9990],
    "mnist_sample": [
        2.3297, 1.8562, 1.5228, 1.4613, 1.0509, 0.9323, 0.8968, 0.9217, 0.8385, 0.7017
    ],
}  # fmt: skip
ACCURACIES = {"mnist": (0.9803, 0.003), "mnist_sample": (0.888, 0.04)}
LOSS_TOLERANCE = 1e-3  # relative; on another device or version, ten steps differ by 1e-5


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Train, compare with the known numbers of the default config, and print a JSON object.

    For a new accelerator or a new version of JAX. A wrong number or an error gives exit code 1.
    """

    require_platform: Platform = None
    """Fail instead of running on another platform."""


def main(options: Options) -> int:
    """Trains, compares and prints the object. Returns 1 if a number is wrong or an error occurs.

    Every error becomes a reason in the object: a new version of JAX may raise anything.
    """
    reject(options.config, "checkpoint_every_steps", "keep", "tensorboard")
    console.stderr = True  # only the object goes to stdout
    report: dict[str, Any] = devices.package_versions("mnist_jax", "jax")
    try:
        devices.check_platform(options.require_platform)
        report["devices"] = devices.describe_devices()
        report |= measure(options.config)
        reasons = compare(report)
    except (RunError, UsageError) as error:
        reasons = [str(error)]
    except Exception as error:
        reasons = [f"{type(error).__name__}: {error}"]
        traceback.print_exc(file=sys.stderr)
    print(json.dumps({"ok": not reasons, **report, "reasons": reasons}, indent=2))
    return 1 if reasons else 0


def measure(config: Config) -> dict[str, Any]:
    """The losses of the first steps, and the test accuracy at the end."""
    if config.dataset not in LOSSES:
        raise UsageError(f"no numbers are known for {config.dataset}; use {' or '.join(LOSSES)}")
    # The numbers of MNIST need MNIST: do not fall back on the sample.
    dataset = load_dataset(dataclasses.replace(config, require_full_data=True))
    setup = set_up(config, dataset, devices.make_mesh())
    state, losses = init_train_state(setup), []
    for epoch in range(1, config.num_epochs + 1):
        totals, chunks = Totals(), train_epoch(setup, state, epoch)
        for state, metrics in chunks:
            totals = totals.add(*metrics)
            losses += list(np.asarray(metrics.loss_sum) / np.asarray(metrics.num_examples))
        console.print(f"epoch {epoch}: running train loss {totals.loss:.4f}")
    first = [float(loss) for loss in losses[: len(LOSSES[dataset.name])]]
    test = evaluate_split(setup, state, "test")
    return {"dataset": dataset.name, "losses": first, "test_accuracy": test.accuracy}


def compare(report: dict[str, Any]) -> list[str]:
    """The numbers that differ from the known ones, as messages."""
    losses, expected_losses, reasons = report["losses"], LOSSES[report["dataset"]], []
    if len(losses) < len(expected_losses):
        reasons.append(f"only {len(losses)} steps were run; {len(expected_losses)} are compared")
    for step, (loss, expected) in enumerate(zip(losses, expected_losses, strict=False), start=1):
        if not abs(loss - expected) <= LOSS_TOLERANCE * expected:
            reasons.append(f"the loss of step {step} is {loss:.5f}, not {expected:.5f}")
    accuracy, (expected, tolerance) = report["test_accuracy"], ACCURACIES[report["dataset"]]
    if not abs(accuracy - expected) <= tolerance:
        reasons.append(f"the test accuracy is {accuracy:.4f}, not {expected:.4f}")
    return reasons
