"""Measures a training step and its parts on 1, 2, 4 and 8 simulated devices.

    python benchmarks/scaling.py

The simulated devices share the cores of this machine, so the matrix products do not become faster.
The added cost is real: the all-reduce of the gradients, and the launch of a program on each device.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from growth import random_dataset
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_jax.config import Config
from mnist_jax.data.pipeline import batch_rows
from mnist_jax.runtime.devices import make_mesh, replicate, split_batches, split_leading_axis
from mnist_jax.steps import train_steps
from mnist_jax.train import init_train_state, set_up

STEPS = 200  # of each timed call of train_steps
CALLS = 100  # of each small program that is timed
ROUNDS = 7


def main() -> None:
    """Prints one line for each number of devices. A new process measures each line."""
    print("devices   a step, ms   all-reduces in a step   one of 1.6 MB, ms   a tiny program, ms")
    given = os.environ.get("XLA_FLAGS", "")
    for devices in (1, 2, 4, 8):
        flags = f"{given} --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, __file__, "measure"]
        subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, check=True)


def measure() -> None:
    """Prints one line for all devices of this process."""
    mesh = make_mesh()
    step_ms, num_reduces = measure_step(mesh)
    numbers = f"{step_ms:10.2f}   {num_reduces:21}   {time_all_reduce(mesh):17.2f}"
    print(f"{mesh.size:7}   {numbers}   {time_launch(mesh):15.3f}", flush=True)


def measure_step(mesh: Mesh) -> tuple[float, int]:
    """Returns the milliseconds of a training step, and the number of its all-reduces."""
    num_examples = 128 * STEPS
    setup = set_up(Config(), random_dataset(num_examples), mesh)
    state = init_train_state(setup)
    order = np.random.default_rng(0).permutation(num_examples)
    rows = split_batches(batch_rows(order, 128), mesh)
    static: dict[str, Any] = {"model": setup.model, "tx": setup.tx}
    program = train_steps.lower(state, setup.dataset.examples, rows, **static).compile()
    num_reduces = len(re.findall(r" all-reduce(?:-start)?\(", str(program.as_text())))

    def train() -> None:
        nonlocal state
        state, _ = train_steps(state, setup.dataset.examples, rows, **static)
        jax.block_until_ready(state)

    return median_ms(train) / STEPS, num_reduces


def time_all_reduce(mesh: Mesh) -> float:
    """Returns the milliseconds of a sum over the devices, as large as the gradients of a step."""
    gradients = split_leading_axis(np.ones((mesh.size, 407_050), np.float32), mesh)
    on_all_devices = NamedSharding(mesh, PartitionSpec())
    all_reduce = jax.jit(lambda x: x.sum(0), out_shardings=on_all_devices)
    return median_ms(repeat(lambda: all_reduce(gradients))) / CALLS


def time_launch(mesh: Mesh) -> float:
    """Returns the milliseconds of a program that adds 1 to a number."""
    number = replicate(np.zeros((), np.float32), mesh)
    add_one = jax.jit(lambda x: x + 1)
    return median_ms(repeat(lambda: add_one(number))) / CALLS


def repeat(function: Callable[[], object]) -> Callable[[], None]:
    """Returns a function that calls `function` CALLS times and waits for each result."""

    def call_many() -> None:
        for _ in range(CALLS):
            jax.block_until_ready(function())

    return call_many


def median_ms(function: Callable[[], None]) -> float:
    """Returns the median milliseconds of a call, after a first call that compiles."""
    function()
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    measure() if "measure" in sys.argv else main()
