"""One device, many devices, many processes: the same numbers except for rounding."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_jax.train import Result
from tests.helpers import assert_first_step_alike, read_history, read_outcome

Arrays = dict[str, np.ndarray]
Command = Callable[..., list[str]]
TRAIN = ["-m", "mnist_jax.train"]
INTERRUPTED = 75
PIPES: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
TOPOLOGIES = [(1, 8), (2, 1)]  # the number of processes, and of devices in each
RESUMED = [(1, 4)]
LOSSES = [(0, signal.SIGKILL), (1, signal.SIGKILL)]  # the lost process, and its signal
if "MNIST_JAX_ALL_TOPOLOGIES" in os.environ:
    TOPOLOGIES += [(1, 2), (1, 4), (2, 4), (4, 1)]
    RESUMED += [(1, 2), (1, 8), (2, 2), (4, 1)]
    LOSSES += [(1, signal.SIGSTOP)]


def start(
    words: list[str],
    processes: int = 1,
    devices: int = 1,
    each: Callable[[int], list[str]] = lambda i: [],
) -> list[subprocess.Popen[str]]:
    """Starts a program in some processes with some devices each; `each(i)` gives more flags."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    started = []
    for i in range(processes):
        flags = ["--coordinator-address", address, "--num-processes", str(processes)]
        flags = [*flags, "--process-id", str(i)] if processes > 1 else []
        command = [sys.executable, *words, *each(i), *flags]
        started.append(subprocess.Popen(command, env=environment, **PIPES))
    return started


def wait(processes: list[subprocess.Popen[str]], seconds: float = 60) -> list[str]:
    """Waits until all processes have ended. Returns what each has printed to stderr."""
    deadline = time.monotonic() + seconds
    try:
        return [p.communicate(timeout=deadline - time.monotonic())[1] for p in processes]
    finally:
        for process in processes:
            process.kill()


def run(words: list[str], processes: int = 1, devices: int = 1) -> None:
    """Runs a program that must succeed."""
    started = start(words, processes, devices)
    errors = wait(started, seconds=300)
    assert [process.returncode for process in started] == [0] * processes, errors


def first_numbers(folder: Path, data_dir: Path, processes: int, devices: int) -> Arrays:
    """The numbers of tests/topology.py."""
    path = folder / "numbers.npz"
    words = ["-m", "tests.topology", "--data-dir", str(data_dir), "--out", str(path)]
    run(words, processes, devices)
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="session")
def command(sample_dir: Path) -> Command:
    """Gives the words that train on the sample in a run directory."""
    words = [*TRAIN, "--dataset", "mnist_sample", "--data-dir", str(sample_dir)]
    words += ["--checkpoint-every-steps", "8", "--steps-per-chunk", "4"]
    return lambda workdir, epochs=12: [
        *words, "--num-epochs", str(epochs), "--workdir", str(workdir)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def one_device(mnist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    return first_numbers(tmp_path_factory.mktemp("one"), mnist_dir, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), TOPOLOGIES)
def test_many_devices_train_like_one_and_repeat_their_bits(
    processes: int, devices: int, mnist_dir: Path, one_device: Arrays, tmp_path: Path
) -> None:
    """Rounding changes a step by 1e-6, ten losses by 1e-5, and an epoch by 0.3 points."""
    found, again = (first_numbers(tmp_path, mnist_dir, processes, devices) for _ in range(2))
    assert found["devices"] == processes * devices
    assert found["count"] == one_device["count"] == 10_000
    for name in one_device:
        np.testing.assert_array_equal(again[name], found[name], err_msg=name)
        if name.startswith("gradient"):
            keys = name, name.replace("gradient", "params")
            assert_first_step_alike(*((one_device[key], found[key]) for key in keys))
    np.testing.assert_allclose(found["losses"], one_device["losses"], rtol=1e-5)
    assert abs(found["accuracy"] - one_device["accuracy"]) <= 0.003


def test_a_batch_that_the_devices_cannot_split_is_refused(command: Command, tmp_path: Path) -> None:
    processes = start([*command(tmp_path / "run"), "--batch-size", "100"], devices=8)
    (errors,) = wait(processes)
    assert processes[0].returncode == 2
    assert "error: batch_size is 100; 8 devices need a multiple of 8" in errors
    assert not (tmp_path / "run").exists()


def test_distributed_outside_of_a_cluster_is_one_line() -> None:
    processes = start([*TRAIN, "--distributed"])
    (errors,) = wait(processes)
    assert processes[0].returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith("error: the processes of this run cannot be connected")
    assert "--coordinator-address" in line


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_devices(command: Command, tmp_path: Path) -> None:
    for epochs, devices in enumerate((8, 1, 8), start=1):
        run(command(tmp_path / "run", epochs), devices=devices)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["devices"] == "8 cpu devices (cpu)"
    run(command(tmp_path / "whole", 3))
    resumed, whole = read_history(tmp_path / "run"), read_history(tmp_path / "whole")
    assert [record["test_count"] for record in resumed] == [1000] * 3
    for there, here in zip(whole, resumed, strict=True):
        assert abs(there["running_train_accuracy"] - here["running_train_accuracy"]) < 0.003


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), RESUMED)
def test_a_run_resumes_to_the_same_bits(
    processes: int, devices: int, command: Command, tmp_path: Path
) -> None:
    for epochs in (6, 12):
        run(command(tmp_path / "run", epochs), processes, devices)
    run(command(tmp_path / "whole"), processes, devices)
    assert read_outcome(tmp_path / "run") == read_outcome(tmp_path / "whole")


@pytest.mark.slow
def test_devices_split_the_seeds(sample_dir: Path, tmp_path: Path) -> None:
    """Three seeds on two devices: a fourth one is trained, and not shown."""
    words = ["-m", "mnist_jax", "seeds", "--num-epochs", "2", "--num-seeds", "3"]
    words += ["--dataset", "mnist_sample", "--data-dir", str(sample_dir)]
    accuracies, out = [], tmp_path / "seeds.json"
    for devices in (1, 2):
        run([*words, "--out", str(out)], devices=devices)
        rows = json.loads(out.read_text())["seeds"]
        assert [row["seed"] for row in rows] == [0, 1, 2]
        accuracies.append([row["test"]["accuracy"] for row in rows])
    np.testing.assert_allclose(*accuracies, atol=0.01)  # ten of the 1,000 images


@pytest.fixture(scope="module")
def two_processes(command: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of a run in two processes that nothing stops."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    run(command(workdir), 2)
    return read_outcome(workdir)


def start_two(words: list[str], workdir: Path) -> list[subprocess.Popen[str]]:
    """Starts a run in two processes. Returns after its second epoch."""
    processes = start(words, 2)
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 100
    while not path.exists() or path.read_text().count("\n") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return processes


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "number"), LOSSES)
def test_a_lost_process_ends_the_other_and_the_run_can_be_resumed(
    lost: int, number: int, command: Command, two_processes: dict[str, Any], tmp_path: Path
) -> None:
    processes = start_two(command(tmp_path / "run"), tmp_path / "run")
    processes[lost].send_signal(number)
    (errors,) = wait([processes[1 - lost]])
    assert processes[1 - lost].returncode not in (0, INTERRUPTED)
    assert "Traceback" not in errors
    processes[lost].kill()
    wait([processes[lost]])
    run(command(tmp_path / "run"), 2)
    assert read_outcome(tmp_path / "run") == two_processes


@pytest.mark.slow
@pytest.mark.parametrize("pause", [None, 0.2, 1.0])
def test_a_signal_to_one_process_saves_and_stops_all(
    pause: float | None, command: Command, two_processes: dict[str, Any], tmp_path: Path
) -> None:
    """Also if the other process gets it `pause` seconds later, when it may have saved already."""
    processes = start_two(command(tmp_path / "run"), tmp_path / "run")
    processes[1].send_signal(signal.SIGTERM)
    if pause:
        time.sleep(pause)
        processes[0].send_signal(signal.SIGTERM)
    errors = wait(processes)
    assert [process.returncode for process in processes] == [INTERRUPTED] * 2
    assert ["interrupted" in text for text in errors] == [True, False]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    run(command(tmp_path / "run"), 2)
    assert read_outcome(tmp_path / "run") == two_processes


PROGRAM = """
import os, signal
from mnist_jax.runtime import devices
from mnist_jax.runtime.cli import LaunchOptions
from mnist_jax.runtime.program import prepare_process, run_command

def main(options):
    prepare_process(options)
    if not devices.is_first_process():
        {failure}
    devices.any_process(True)  # waits for the other process

run_command(LaunchOptions, main, "a test")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM, ""),
    ],
)
def test_a_process_that_fails_ends_the_other(failure: str, code: int, message: str) -> None:
    processes = start(["-c", PROGRAM.format(failure=failure)], 2)
    errors = wait(processes)
    assert processes[0].returncode not in (0, INTERRUPTED)
    assert "Traceback" not in errors[0]
    assert processes[1].returncode == code
    assert message in errors[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "name"), [("--seed", "seed"), ("--workdir", "checkpoints")], ids=str
)
def test_processes_that_differ_all_end(
    flag: str, name: str, command: Command, sample_run: Result, tmp_path: Path
) -> None:
    """They have different seeds, or different directories of the same name."""
    shutil.copytree(sample_run.workdir, tmp_path / "0")
    values = ["0", "1"] if flag == "--seed" else [str(tmp_path / "0"), str(tmp_path / "1")]
    processes = start(command(tmp_path / "0", 2), 2, each=lambda i: [flag, values[i]])
    errors = wait(processes)
    assert [process.returncode for process in processes] == [1, 1]
    message = f"error: the processes of this run differ; this one has {name}: "
    assert all(text.startswith(message) for text in errors)
