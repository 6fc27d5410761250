"""Measures the time from the start of Python to the first training step, by stages.

    python benchmarks/start.py --data-dir ~/tensorflow_datasets

The flags and the stages are those of `python -m mnist_jax.train`. Prints medians over five
processes, with everything cached.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STARTED = "MNIST_JAX_STARTED"  # an environment variable: when the process was started
ROUNDS = 5


class StopWatch:
    """Prints how many seconds each stage took."""

    def __init__(self, started: float) -> None:
        self.last = started

    def lap(self, stage: str) -> None:
        now = time.time()
        print(stage, now - self.last)
        self.last = now


def main() -> None:
    """Runs the stages in new processes and prints the medians."""
    laps: dict[str, list[float]] = {}
    run_process()  # fills the caches
    for _ in range(ROUNDS):
        for line in run_process():
            stage, _, seconds = line.rpartition(" ")
            laps.setdefault(stage, []).append(float(seconds))
    medians = {stage: statistics.median(seconds) for stage, seconds in laps.items()}
    for stage, seconds in medians.items():
        print(f"{stage:50} {seconds:.2f} s")
    print(f"{'all':50} {sum(medians.values()):.2f} s")


def run_process() -> list[str]:
    """Runs the stages in a new process. Returns the lines that it prints."""
    environment = {**os.environ, STARTED: str(time.time())}
    command = [sys.executable, __file__, *sys.argv[1:]]
    output = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return output.splitlines()


def time_imports(watch: StopWatch) -> None:
    """Imports the packages one after the other, as the program does."""
    import jax  # noqa: F401

    watch.lap("jax")
    import flax.linen  # noqa: F401
    import optax  # noqa: F401

    watch.lap("flax, optax")
    import mnist_jax.train  # noqa: F401

    watch.lap("the package, tyro, rich")


def time_first_step(watch: StopWatch) -> None:
    """Does the work of a run from its flags to its first step."""
    import jax

    from mnist_jax import train
    from mnist_jax.data import pipeline
    from mnist_jax.runtime.checkpoint import Checkpoints
    from mnist_jax.runtime.cli import parse
    from mnist_jax.runtime.devices import make_mesh
    from mnist_jax.runtime.program import enable_compilation_cache
    from mnist_jax.runtime.workdir import RunDirectory

    enable_compilation_cache()
    config = parse(train.Options, prog="start.py").config
    config = dataclasses.replace(config, steps_per_chunk=1)
    watch.lap("the settings")
    mesh = make_mesh()
    watch.lap("the device")
    dataset = pipeline.load_dataset(config)
    watch.lap("data: the decoded cache, normalised")
    fingerprint = pipeline.fingerprint(config, dataset)
    watch.lap("checksum of the data")
    setup = train.set_up(config, dataset, mesh)
    state = jax.block_until_ready(train.init_train_state(setup))
    watch.lap("data to the device, first parameters")
    with (
        tempfile.TemporaryDirectory() as directory,
        RunDirectory(Path(directory, "run"), fingerprint) as workdir,
        Checkpoints(workdir),
    ):
        watch.lap("Orbax, the run directory")
        jax.block_until_ready(next(train.train_epoch(setup, state, epoch=1)))
        watch.lap("the first step: its program from the cache")


if __name__ == "__main__":
    if STARTED in os.environ:
        stopwatch = StopWatch(float(os.environ[STARTED]))
        stopwatch.lap("Python")
        time_imports(stopwatch)
        time_first_step(stopwatch)
    else:
        main()
