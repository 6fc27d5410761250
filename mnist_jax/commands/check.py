"""`python -m mnist_jax check`: does this machine, with this jax, give the known numbers?"""

from mnist_jax.command_line import Platform, parse_args
from mnist_jax.commands.options import CheckOptions

if __name__ == "__main__":  # before jax is imported
    CONFIG, OPTIONS = parse_args(options=CheckOptions, command="check")

import dataclasses
import json
import sys
import traceback
from typing import Any, NamedTuple

import numpy as np

from mnist_jax.config import Config
from mnist_jax.errors import ConfigError, RunError
from mnist_jax.input_pipeline import load_dataset
from mnist_jax.metrics import summarize
from mnist_jax.run_log import VERSIONS
from mnist_jax.runtime import check_platform, console, describe_devices, exit_at_once, run_program
from mnist_jax.sharding import make_mesh
from mnist_jax.task import evaluate_split, new_metrics, set_up
from mnist_jax.train import train_epoch


class Known(NamedTuple):
    """What the default config gives, with float32 products on a CPU."""

    losses: tuple[float, ...]
    """The mean loss of each of the first batches, before its step."""
    test_accuracy: float


KNOWN = {
    "mnist": Known(
        (2.3423, 1.8951, 1.4807, 1.3682, 1.1534, 1.0463, 0.8619, 0.7776, 0.7998, 0.9990), 0.9803
    ),
    "mnist_sample": Known(
        (2.3297, 1.8562, 1.5228, 1.4613, 1.0509, 0.9323, 0.8968, 0.9217, 0.8385, 0.7017), 0.888
    ),
}
LOSS_TOLERANCE = 1e-3  # relative; ten steps of another device or version differ by 1e-5
ACCURACY_TOLERANCE = {"mnist": 0.003, "mnist_sample": 0.04}  # two deviations between seeds


def check(config: Config, require_platform: Platform = None) -> int:
    """Trains, compares and prints the object. Returns the exit code.

    Whatever goes wrong is a reason in the object: a new jax may raise anything.
    """
    console.stderr = True  # nothing but the object goes to stdout
    report: dict[str, Any] = {"ok": False, **VERSIONS}
    try:
        check_platform(require_platform)
        report["devices"] = describe_devices()
        report |= measure(config)
        reasons = compare(report)
    except Exception as error:
        reasons = [f"{type(error).__name__}: {error}"]
        if isinstance(error, RunError | ConfigError | FloatingPointError):
            reasons = [str(error)]
        else:
            traceback.print_exc(file=sys.stderr)
    print(json.dumps({**report, "ok": not reasons, "reasons": reasons}, indent=2))
    return 1 if reasons else 0


def measure(config: Config) -> dict[str, Any]:
    """The losses of the first steps, and the test accuracy after all."""
    if config.dataset not in KNOWN:
        raise ConfigError(f"nothing is known of {config.dataset}: take {' or '.join(KNOWN)}")
    # Not in silence on the sample: whoever asks for MNIST wants its numbers.
    dataset = load_dataset(dataclasses.replace(config, require_full_data=True))
    task, state = set_up(config, dataset, make_mesh())
    losses = []
    for epoch in range(1, config.num_epochs + 1):
        chunks = train_epoch(task, state, metrics := new_metrics(task), epoch)
        for state, metrics, _ in chunks:
            pass
        losses += list(np.asarray(metrics.loss_sum) / np.asarray(metrics.count))
        console.print(f"epoch {epoch}: running train loss {summarize(metrics).loss:.4f}")
    return {
        "dataset": dataset.name,
        "losses": [float(loss) for loss in losses[: len(KNOWN[dataset.name].losses)]],
        "test_accuracy": evaluate_split(task, state, "test").accuracy,
    }


def compare(report: dict[str, Any]) -> list[str]:
    """What is not as it is known to be."""
    name = report["dataset"]
    known, reasons = KNOWN[name], []
    if (num_steps := len(report["losses"])) < len(known.losses):
        reasons.append(f"steps taken: {num_steps}; compared are the first {len(known.losses)}")
    for i, (loss, expected) in enumerate(zip(report["losses"], known.losses, strict=False)):
        if not abs(loss - expected) <= LOSS_TOLERANCE * expected:
            reasons.append(f"the loss of step {i + 1} is {loss:.5f}, not {expected:.5f}")
    accuracy, expected = report["test_accuracy"], known.test_accuracy
    if not abs(accuracy - expected) <= ACCURACY_TOLERANCE[name]:
        reasons.append(f"the test accuracy is {accuracy:.4f}, not {expected:.4f}")
    return reasons


if __name__ == "__main__":
    CODE = run_program(lambda: check(CONFIG, OPTIONS.require_platform))  # pyright: ignore[reportPossiblyUnboundVariable]
    exit_at_once(CODE)
