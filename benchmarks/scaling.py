"""What a step costs on 1, 2, 4 and 8 simulated devices: all of it, and its parts.

    python benchmarks/scaling.py

The devices share this machine's cores, so the products become no faster; what more devices cost is
real: the all-reduce of the gradients, and starting a program on each.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

STEPS, ROUNDS, CALLS = 200, 7, 100


def main() -> None:
    """Prints a line for each number of devices, from a process of its own."""
    print("devices   step, ms   all-reduces in it   one of 1.6 MB, ms   an empty program, ms")
    given = os.environ.get("XLA_FLAGS", "")
    for devices in (1, 2, 4, 8):
        flags = {"XLA_FLAGS": f"{given} --xla_force_host_platform_device_count={devices}"}
        command = [sys.executable, __file__, "here"]
        subprocess.run(command, env={**os.environ, **flags}, check=True)


def measure() -> None:
    """One line, on all devices of this process."""
    import jax
    import numpy as np

    from mnist_jax.config import Config
    from mnist_jax.input_pipeline import Dataset, batch_rows
    from mnist_jax.sharding import make_mesh, replicate, split_batches, split_leading_axis
    from mnist_jax.steps import Examples, train_steps
    from mnist_jax.task import new_metrics, set_up

    num_examples = 128 * STEPS
    rng = np.random.default_rng(0)
    images = rng.random((num_examples, 784), np.float32)
    examples = Examples(images, rng.integers(0, 10, num_examples, np.int32))
    mesh = make_mesh()
    task, state = set_up(
        Config(), Dataset("random", examples, {"train": range(num_examples)}), mesh
    )
    order = split_batches(batch_rows(rng.permutation(num_examples), 128), mesh)
    metrics = new_metrics(task)

    static = {"model": task.model, "tx": task.tx}

    def steps() -> None:
        nonlocal state, metrics
        state, metrics = train_steps(state, metrics, task.examples, order, 0, STEPS, **static)
        jax.block_until_ready(state)

    program = train_steps.lower(state, metrics, task.examples, order, 0, STEPS, **static)
    num_reduces = len(re.findall(r" all-reduce(?:-start)?\(", str(program.compile().as_text())))
    # A sum over the devices that each of them gets: as the gradients' in a step.
    gradients = split_leading_axis(np.ones((mesh.size, 407_050), np.float32), mesh)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    all_reduce = jax.jit(lambda x: x.sum(0), out_shardings=everywhere)
    small = replicate(np.zeros((), np.float32), mesh)
    empty = jax.jit(lambda x: x + 1)

    def many(function: Callable[[], object]) -> Callable[[], object]:
        return lambda: [jax.block_until_ready(function()) for _ in range(CALLS)]

    step = median_ms(steps) / STEPS
    reduced = median_ms(many(lambda: all_reduce(gradients))) / CALLS
    launched = median_ms(many(lambda: empty(small))) / CALLS
    numbers = f"{step:8.2f}   {num_reduces:17}   {reduced:17.2f}   {launched:20.3f}"
    print(f"{mesh.size:7}   {numbers}", flush=True)


def median_ms(function: Callable[[], object]) -> float:
    """Milliseconds of a call, the first one not counted."""
    function()
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    measure() if "here" in sys.argv else main()
