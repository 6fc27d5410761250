"""One device, many, many processes: the same numbers but for rounding, each the same bits."""

import json
import os
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

from mnist_jax.processes import LOST, NOT_MET, is_cluster
from mnist_jax.runtime import INTERRUPTED
from tests.small import assert_first_step_alike
from tests.test_durability import contents, read_history

Arrays = dict[str, np.ndarray]
TRAIN = ["-m", "mnist_jax.train"]
TOPOLOGIES = [(1, 8), (2, 1)]  # processes, and the devices of each
RESUMED = [(1, 4)]  # that of two processes is, where one is killed
LOST_ONES = [(0, signal.SIGKILL), (1, signal.SIGKILL)]
STOPPED = [(0, 1)]
if "MNIST_JAX_ALL_TOPOLOGIES" in os.environ:
    TOPOLOGIES += [(1, 2), (1, 4), (2, 4), (4, 1)]
    RESUMED += [(1, 2), (1, 8), (2, 2), (4, 1)]
    LOST_ONES += [(1, signal.SIGSTOP)]
    STOPPED += [(1,)]


def start(
    words: list[str],
    processes: int = 1,
    devices: int = 1,
    each: Callable[[int], list[str]] = lambda i: [],
) -> list[subprocess.Popen[str]]:
    """Starts a program in `processes` processes with `devices` devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    started = []
    for i in range(processes):
        joining = ["--coordinator-address", address, "--num-processes", f"{processes}"]
        joining += ["--process-id", f"{i}", *each(i)]
        started.append(
            subprocess.Popen(
                [sys.executable, *words, *(joining if processes > 1 else [])],
                env={**os.environ, "XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def run(words: list[str], processes: int = 1, devices: int = 1) -> str:
    """Runs it to its good end; returns what the first process has printed."""
    outputs = [(*p.communicate(), p.returncode) for p in start(words, processes, devices)]
    assert [code for *_, code in outputs] == [0] * processes, outputs
    return outputs[0][0]


def numbers(folder: Path, flags: list[str], processes: int, devices: int) -> Arrays:
    path = folder / "numbers.npz"
    run(["-m", "tests.topology", str(path), *flags], processes, devices)
    with np.load(path) as file:
        return dict(file)


def assert_alike(there: Arrays, here: Arrays) -> None:
    """To what rounding does: 1e-6 after a step, 1e-5 after ten, 0.3 points after an epoch."""
    assert there.keys() == here.keys()
    for name in there:
        if name.startswith("gradient"):
            step = name.replace("gradient", "step")
            assert_first_step_alike((there[name], here[name]), (there[step], here[step]))
    np.testing.assert_allclose(here["losses"], there["losses"], rtol=1e-5)
    assert abs(here["accuracy"] - there["accuracy"]) <= 0.003
    assert here["count"] == there["count"]


@pytest.fixture(scope="session")
def sample_flags(sample_dir: Path) -> list[str]:
    return ["--dataset", "mnist_sample", "--data-dir", str(sample_dir)]


@pytest.fixture(scope="session")
def mnist_flags(mnist_dir: Path) -> list[str]:
    return ["--data-dir", str(mnist_dir)]


@pytest.fixture(scope="session")
def one_device(mnist_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    return numbers(tmp_path_factory.mktemp("one"), mnist_flags, 1, 1)


@pytest.mark.slow
def test_four_devices_train_alike(sample_flags: list[str], tmp_path: Path) -> None:
    one, four = (numbers(tmp_path, sample_flags, 1, n) for n in (1, 4))
    assert (one["count"], four["shards"]) == (1000, 4)
    assert_alike(one, four)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), TOPOLOGIES)
def test_each_topology_trains_alike_and_repeats_itself(
    processes: int,
    devices: int,
    mnist_flags: list[str],
    sample_flags: list[str],
    one_device: Arrays,
    tmp_path: Path,
) -> None:
    found = numbers(tmp_path, mnist_flags, processes, devices)
    assert found["shards"] == processes * devices
    assert one_device["count"] == 10_000
    assert_alike(one_device, found)
    first, second = (numbers(tmp_path, sample_flags, processes, devices) for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array, err_msg=name)


def test_a_batch_that_the_devices_cannot_share_is_refused(
    sample_flags: list[str], tmp_path: Path
) -> None:
    words = [*TRAIN, *sample_flags, "--batch-size", "100", "--workdir", str(tmp_path / "run")]
    (process,) = start(words, devices=8)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "batches have 100 examples" in errors
    assert not (tmp_path / "run").exists()


def command(flags: list[str], workdir: Path, epochs: int) -> list[str]:
    more = ["--checkpoint-every-steps", "8", "--steps-per-chunk", "4", "--workdir", str(workdir)]
    return [*TRAIN, *flags, "--num-epochs", str(epochs), *more]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(
    sample_flags: list[str], tmp_path: Path
) -> None:
    said = ""
    for epochs, devices in enumerate((8, 1, 8), start=1):
        said = run(command(sample_flags, tmp_path / "run", epochs), devices=devices)
    assert "Continuing" in said
    assert "8 cpu devices" in said
    run(command(sample_flags, tmp_path / "whole", 3))
    went_on, whole = read_history(tmp_path / "run"), read_history(tmp_path / "whole")
    assert [record["test_count"] for record in went_on] == [1000] * 3
    for there, here in zip(whole, went_on, strict=True):
        assert abs(there["running_train_accuracy"] - here["running_train_accuracy"]) < 0.003


@pytest.mark.slow
def test_devices_share_seeds(sample_flags: list[str], tmp_path: Path) -> None:
    """Three seeds on two devices: a fourth is trained and left out."""
    accuracies = []
    for devices in (1, 2):
        out = tmp_path / f"{devices}.json"
        flags = [*sample_flags, "--num-epochs", "2", "--num-seeds", "3", "--out", str(out)]
        run(["-m", "mnist_jax", "seeds", *flags], devices=devices)
        rows = json.loads(out.read_text())["seeds"]
        assert [row["seed"] for row in rows] == [0, 1, 2]
        accuracies.append([row["test"]["accuracy"] for row in rows])
    np.testing.assert_allclose(*accuracies, atol=0.01)  # ten of the 1,000 images


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), RESUMED)
def test_each_topology_goes_on_bit_for_bit(
    processes: int, devices: int, sample_flags: list[str], tmp_path: Path
) -> None:
    for epochs in (6, 12):
        run(command(sample_flags, tmp_path / "run", epochs), processes, devices)
    run(command(sample_flags, tmp_path / "whole", 12), processes, devices)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.fixture(scope="module")
def two_processes(
    sample_flags: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a run of two processes leaves that nothing stops."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    run(command(sample_flags, workdir, 12), 2)
    return contents(workdir)


def wait_for_epochs(workdir: Path, n: int) -> None:
    deadline = time.monotonic() + 100
    while not (path := workdir / "metrics.jsonl").exists() or path.read_text().count("\n") < n:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), LOST_ONES)
def test_a_process_that_dies_or_hangs_ends_the_others(
    victim: int,
    number: signal.Signals,
    sample_flags: list[str],
    two_processes: dict[str, Any],
    tmp_path: Path,
) -> None:
    running = start(command(sample_flags, tmp_path / "run", 12), 2)
    wait_for_epochs(tmp_path / "run", 2)
    running[victim].send_signal(number)
    _, errors = running[1 - victim].communicate(timeout=60)
    assert running[1 - victim].returncode not in (0, INTERRUPTED)
    assert f"error: {LOST}" in errors
    assert "Traceback" not in errors
    running[victim].kill()
    running[victim].communicate()
    run(command(sample_flags, tmp_path / "run", 12), 2)
    assert contents(tmp_path / "run") == two_processes


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_of_them(
    sample_flags: list[str], two_processes: dict[str, Any], tmp_path: Path
) -> None:
    running = start(command(sample_flags, tmp_path / "run", 12), 2)
    wait_for_epochs(tmp_path / "run", 2)
    running[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [INTERRUPTED] * 2
    assert ["interrupted" in errors for _, errors in outputs] == [True, False]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    run(command(sample_flags, tmp_path / "run", 12), 2)
    assert contents(tmp_path / "run") == two_processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: ["--seed", f"{i}"], "the processes of this run differ, and here is seed: "),
        (lambda i: ["--batch-size", "127"], "2 devices cannot share"),
    ],
)
def test_processes_that_differ_all_end(
    change: Callable[[int], list[str]], message: str, sample_flags: list[str], tmp_path: Path
) -> None:
    running = start(command(sample_flags, tmp_path / "run", 2), 2, each=change)
    errors = [process.communicate(timeout=90)[1] for process in running]
    assert all(process.returncode in (1, 2) for process in running)
    assert all(message in " ".join(text.replace("│", " ").split()) for text in errors)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", STOPPED)
def test_a_signal_before_training_ends_all(
    stopped: tuple[int, ...], sample_flags: list[str], tmp_path: Path
) -> None:
    """The data take long to load: nothing has begun that would have to be saved."""
    program = """if True:
        import signal, sys, time
        from pathlib import Path
        from mnist_jax import train
        from mnist_jax.command_line import parse_args
        from mnist_jax.runtime import Signals, exit_at_once
        def load(config):
            (parent / sys.argv[-1]).touch()
            time.sleep(600)
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        config, launch = parse_args()
        parent, train.load_dataset = launch.workdir.parent, load
        exit_at_once(train.run(config, launch, Signals()))"""
    running = start(["-c", program, *sample_flags, "--workdir", str(tmp_path / "run")], 2)
    while not all((tmp_path / f"{i}").exists() for i in range(2)):
        time.sleep(0.05)
    for i in stopped:
        running[i].send_signal(signal.SIGTERM)
    for i, process in enumerate(running):
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        if i in stopped:
            assert process.returncode == 128 + signal.SIGTERM
        else:
            assert process.returncode not in (0, INTERRUPTED)
            assert f"error: {LOST}" in errors


@pytest.mark.slow
@pytest.mark.skipif("MNIST_JAX_ALL_TOPOLOGIES" not in os.environ, reason="it waits for 45 seconds")
def test_a_process_whose_other_never_comes_says_so(sample_flags: list[str], tmp_path: Path) -> None:
    wrong = ["--learning-rate", "-1"]
    words = [*TRAIN, *sample_flags, "--workdir", str(tmp_path / "run")]
    running = start(words, 2, each=lambda i: wrong if i == 0 else [])
    assert "learning_rate is -1" in running[0].communicate(timeout=60)[1]
    _, errors = running[1].communicate(timeout=60)
    assert [process.returncode == 0 for process in running] == [False, False]
    assert f"error: {NOT_MET}" in errors


@pytest.mark.slow
def test_a_bug_in_one_process_ends_all_and_keeps_its_traceback(
    sample_flags: list[str], tmp_path: Path
) -> None:
    program = """if True:
        import sys
        from mnist_jax import train
        from mnist_jax.command_line import parse_args
        from mnist_jax.runtime import Signals, exit_at_once
        if sys.argv[-1] == "1":
            train.evaluate_split = None
        exit_at_once(train.run(*parse_args(), Signals()))"""
    words = ["-c", program, *sample_flags, "--workdir", str(tmp_path / "run")]
    started = time.monotonic()
    running = start(words, 2)
    errors = [process.communicate(timeout=90)[1] for process in running]
    assert time.monotonic() - started < 60
    assert 0 not in [process.returncode for process in running]
    assert "TypeError: 'NoneType' object is not callable" in errors[1]
    assert f"error: {LOST}" in errors[0]


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused(sample_flags: list[str], tmp_path: Path) -> None:
    flags = [*TRAIN, *sample_flags, "--num-epochs", "2"]
    run([*flags, "--workdir", str(tmp_path / "0")])
    running = start(flags, 2, each=lambda i: ["--workdir", str(tmp_path / str(i))])
    errors = [process.communicate(timeout=90)[1] for process in running]
    assert [process.returncode for process in running] == [1, 1]
    assert all("the processes of this run differ, and here is check" in text for text in errors)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, False),  # in a batch script, without srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
    ],
)
def test_a_cluster_is_known_by_its_environment(environment: dict[str, str], expected: bool) -> None:
    assert is_cluster(environment) == expected
