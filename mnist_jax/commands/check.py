"""`python -m mnist_jax check`: does this machine, with this jax, give the known numbers?"""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.errors import JaxRuntimeError

import mnist_jax
from mnist_jax.command_line import Platform, check_options, parse_args
from mnist_jax.config import Config
from mnist_jax.errors import ConfigError, RunError
from mnist_jax.input_pipeline import load_dataset
from mnist_jax.runtime import check_platform, console, describe_devices, exit_at_once, run_program
from mnist_jax.sharding import make_mesh
from mnist_jax.task import new_metrics, set_up
from mnist_jax.train import train_and_evaluate, train_epoch

DESCRIPTION = """Train the default config, compare it with the known numbers, and print one JSON
object: for a new accelerator or a new jax. The exit code is 1 if a number is not the known one."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is wanted beside the settings of a run."""

    require_platform: Platform = None
    """Fail rather than run on another platform."""

    def __post_init__(self) -> None:
        check_options(self)


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


def main(args: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    prog = "python -m mnist_jax check"
    config, options = parse_args(args, options=Options, prog=prog, description=DESCRIPTION)
    # The platform is checked within, so that what is wrong with it is told in the object.
    return run_program(lambda: check(config, options.require_platform))


def check(config: Config, require_platform: Platform) -> int:
    """Trains, compares and prints the object. Returns the exit code."""
    console.stderr = True  # nothing but the object goes to stdout
    report: dict[str, Any] = {"ok": False, "mnist_jax": mnist_jax.__version__}
    try:
        check_platform(require_platform)
        report |= {"jax": jax.__version__, "devices": describe_devices()}
        report |= measure(config)
        reasons = compare(report)
    except (RunError, ConfigError, FloatingPointError, MemoryError, JaxRuntimeError) as error:
        reasons = [str(error) or type(error).__name__]
    print(json.dumps({**report, "ok": not reasons, "reasons": reasons}, indent=2))
    return 1 if reasons else 0


def measure(config: Config) -> dict[str, Any]:
    """The losses of the first steps, and the result of a whole run."""
    dataset = load_dataset(config)
    num_losses = len(KNOWN["mnist"].losses)
    first_steps = dataclasses.replace(config, steps_per_chunk=num_losses)
    task, state = set_up(first_steps, dataset, make_mesh())
    _, metrics, _ = next(train_epoch(task, state, new_metrics(task), epoch=1))
    losses = np.asarray(metrics.loss_sum)[:num_losses] / np.asarray(metrics.count)[:num_losses]
    with tempfile.TemporaryDirectory() as folder:
        result = train_and_evaluate(config, folder)
    return {
        "dataset": dataset.name,
        "losses": [float(loss) for loss in losses],
        "test_accuracy": result.test.accuracy,
    }


def compare(report: dict[str, Any]) -> list[str]:
    """What is not as it is known to be."""
    name = report["dataset"]
    if name not in KNOWN:
        return [f"nothing is known of {name}: take {' or '.join(KNOWN)}"]
    known, reasons = KNOWN[name], []
    for i, (loss, expected) in enumerate(zip(report["losses"], known.losses, strict=False)):
        if not abs(loss - expected) <= LOSS_TOLERANCE * expected:
            reasons.append(f"the loss of step {i + 1} is {loss:.5f}, not {expected:.5f}")
    accuracy, expected = report["test_accuracy"], known.test_accuracy
    if not abs(accuracy - expected) <= ACCURACY_TOLERANCE[name]:
        reasons.append(f"the test accuracy is {accuracy:.4f}, not {expected:.4f}")
    return reasons


if __name__ == "__main__":
    exit_at_once(main())
