"""Where the time from `python` to the first step goes: medians over five processes, all cached.

    python benchmarks/start.py --data-dir ~/tensorflow_datasets

The stages are those of `python -m mnist_jax.train`.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START = "MNIST_JAX_START"


def main() -> None:
    """Runs the stages in fresh processes, once to fill the caches, and prints the medians."""
    laps: dict[str, list[float]] = {}
    for i in range(6):
        environment = {**os.environ, START: str(time.time())}
        command = [sys.executable, __file__, *sys.argv[1:]]
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        for line in output.stdout.decode().splitlines() if i else []:
            stage, _, seconds = line.rpartition(" ")
            laps.setdefault(stage, []).append(float(seconds))
    medians = {stage: statistics.median(seconds) for stage, seconds in laps.items()}
    for stage, seconds in medians.items():
        print(f"{stage:50} {seconds:.2f} s")
    print(f"{'all':50} {sum(medians.values()):.2f} s")


def run_stages() -> None:
    """One start, in this process: prints the seconds of each stage."""
    last = float(os.environ[START])

    def lap(stage: str) -> None:
        nonlocal last
        now = time.time()
        print(stage, now - last)
        last = now

    lap("Python")
    from mnist_jax.command_line import parse_args

    config, _ = parse_args()
    lap("tyro, the settings")
    import jax

    jax.devices()
    lap("jax, its device")
    import flax.linen  # noqa: F401
    import optax  # noqa: F401

    lap("flax, optax")
    from mnist_jax import checkpoint, input_pipeline, runtime, sharding, steps
    from mnist_jax import task as tasks

    runtime.enable_compilation_cache()
    lap("the package")
    dataset = input_pipeline.load_dataset(config)
    lap("data: the decoded cache, normalised")
    task, state = jax.block_until_ready(tasks.set_up(config, dataset, sharding.make_mesh()))
    lap("data to the device, first parameters")
    description = input_pipeline.describe_dataset(dataset)
    lap("checksum of the data")
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = checkpoint.Checkpoints(Path(folder), config.keep, description)
        lap("Orbax, its folder")
        order = input_pipeline.epoch_order(
            task.order_key, 1, len(task.splits["train"]), task.batch_size
        )
        metrics = tasks.new_metrics(task)
        static = {"model": task.model, "tx": task.tx}
        jax.block_until_ready(
            steps.train_steps(state, metrics, task.examples, order, 0, 1, **static)
        )
        lap("the first step: its program from the cache")
        checkpoints.close()


if __name__ == "__main__":
    run_stages() if START in os.environ else main()
