"""Compares this project with other libraries, and with the limit of the machine.

    pip install -e ".[bench]"
    python benchmarks/compare.py    # less than ten minutes; with --quick less than two

Each contestant runs in its own process. The contestants take turns, so that other work on the
machine affects all of them. Prints a table of medians, and writes compare.json and compare.png.
"""

import importlib.util
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro
from results import LABELS, LIMIT, OURS, PARTS, Process, draw, print_table, summarize

from mnist_jax.config import Config

HERE = Path(__file__).parent
NUM_EPOCHS = 5  # in a whole process
TRAINERS = tuple(name for name in LABELS if name != LIMIT)
CONTESTANTS = (*TRAINERS, *PARTS["products"], *PARTS["update"])
SLOW_TO_COMPILE = ("keras_jax_50", "torch_compile")


def main(
    data_dir: str = Config.data_dir,
    manual_dir: str | None = None,
    out: Path = HERE,
    quick: bool = False,
    only: tuple[str, ...] = CONTESTANTS,
) -> None:
    """Runs the comparison.

    Args:
        data_dir: see `python -m mnist_jax.train --help`
        manual_dir: see `python -m mnist_jax.train --help`
        out: the directory for compare.json and compare.png
        quick: time 3 epochs of each contestant instead of 11, and one whole process of this
            project and of Keras only; leave out torch.compile and steps_per_execution
        only: the contestants to run
    """
    check_installed(only)
    names = [name for name in only if not (quick and name in SLOW_TO_COMPILE)]
    data = prepare_in_another_process(data_dir, manual_dir)
    epochs = time_epochs(names, data, rounds=3 if quick else 11)
    wanted = (OURS, "keras_jax") if quick else TRAINERS
    whole = [name for name in names if name in wanted]
    rows = summarize(epochs, time_processes(whole, data, rounds=1 if quick else 3))
    print_table(rows)
    report = {**describe_machine(), "contestants": rows}
    (out / "compare.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(rows, out / "compare.png", NUM_EPOCHS)


def check_installed(names: Sequence[str]) -> None:
    for package in ("keras", "torch"):
        needed = any(package in name for name in names)
        if needed and not importlib.util.find_spec(package):
            sys.exit(f'{package} is not installed: pip install -e ".[bench]"')


def prepare_in_another_process(data_dir: str, manual_dir: str | None) -> Path:
    """Fills the decoded cache of MNIST. Returns its path.

    On Linux the peak memory of a child starts at that of its parent, so this process stays small.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(prepare, data_dir, manual_dir).result()
    return Path(os.path.expanduser(data_dir), "mnist_jax", "mnist.npz")


def prepare(data_dir: str, manual_dir: str | None) -> None:
    from mnist_jax.data.pipeline import load_dataset

    load_dataset(Config(data_dir=data_dir, manual_dir=manual_dir, require_full_data=True))


def time_epochs(names: Sequence[str], data: Path, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of `rounds` warm epochs for each contestant."""
    with ExitStack() as stack:
        workers = {}
        for name in names:
            print_progress(f"compiling {name}")
            workers[name] = stack.enter_context(start_worker(name, data))
            for _ in range(2):
                workers[name]()
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for i in range(rounds):
            print_progress(f"round {i + 1} of {rounds}")
            for name, train_epoch in workers.items():
                time.sleep(0.3)  # The threads of the previous contestant go to sleep.
                seconds[name].append(train_epoch())
    return seconds


@contextmanager
def start_worker(name: str, data: Path) -> Iterator[Callable[[], float]]:
    """Starts a contestant. Yields a function that trains one epoch and returns its seconds."""
    command = [sys.executable, HERE / "contestants.py", name, data]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin
        assert stdout

        def train_epoch() -> float:
            print(file=stdin, flush=True)
            answer = stdout.readline()
            return float(answer) if answer else sys.exit(f"{name} failed")

        yield train_epoch


def time_processes(names: Sequence[str], data: Path, rounds: int) -> dict[str, list[Process]]:
    """Measures `rounds` whole processes of each contestant: start, five epochs, test, exit."""
    processes: dict[str, list[Process]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names:
            print_progress(f"whole processes, round {i + 1} of {rounds}: {name}")
            with tempfile.TemporaryDirectory() as scratch:
                processes[name].append(time_process(name, data, Path(scratch)))
    return processes


def time_process(name: str, data: Path, scratch: Path) -> Process:
    """Runs a contestant as a program, with empty compilation caches."""
    workdir, output = scratch / "run", scratch / "output"
    if name == OURS:  # The program itself. It also logs, tests each epoch and saves.
        flags = ["--data-dir", data.parent.parent, "--workdir", workdir]
        command = [sys.executable, "-m", "mnist_jax.train", *flags]
    else:
        command = [sys.executable, HERE / "contestants.py", name, data]
    command = [str(word) for word in (*command, "--num-epochs", NUM_EPOCHS)]
    seconds, peak_mib = run_and_measure(command, output, make_environment(scratch))
    if name == OURS:
        accuracy = json.loads((workdir / "result.json").read_text())["test_accuracy"]
    else:
        accuracy = float(output.read_text().splitlines()[-1])
    return Process(seconds, peak_mib, accuracy)


def make_environment(caches: Path) -> dict[str, str]:
    """Returns this process's environment, with the compilation caches in `caches`."""
    directories = dict.fromkeys(("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"), str(caches))
    environment = {**os.environ, **directories}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return environment


def run_and_measure(
    command: list[str], output: Path, environment: dict[str, str]
) -> tuple[float, float]:
    """Runs a command with its stdout in a file. Returns its seconds and its peak memory in MiB."""
    with output.open("w") as stdout:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=stdout, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    # Popen must know that wait4 has collected its process.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return seconds, usage.ru_maxrss / 1024


def describe_machine() -> dict[str, Any]:
    """Returns the processor, its number of cores, and the versions of the libraries."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search("model name\\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    packages = ("jax", "flax", "optax", "keras", "torch", "numpy")
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in packages if importlib.util.find_spec(name)},
    }


def print_progress(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    tyro.cli(main)
