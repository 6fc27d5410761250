"""Processes that are killed, disks that are full, runs that are long."""

import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mnist_jax.config import Config
from mnist_jax.runtime.checkpoint import Checkpoints
from mnist_jax.runtime.program import INTERRUPTED
from mnist_jax.runtime.workdir import RunDirectory
from mnist_jax.train import Result, train_and_evaluate
from tests.helpers import assert_same_run, newest_step, read_history, read_outcome, small_disk

KILLS = int(os.environ.get("MNIST_JAX_KILLS", "10"))
EPOCHS, STEPS = 12, 32


def command(workdir: Path, sample_dir: Path, **changes: Any) -> list[str]:
    """The command line of a run on the sample."""
    flags = {
        "dataset": "mnist_sample",
        "data_dir": sample_dir,
        "num_epochs": EPOCHS,
        "steps_per_chunk": 4,
        "checkpoint_every_steps": 12,
        "workdir": workdir,
    }
    words = [f"--{name.replace('_', '-')}={value}" for name, value in (flags | changes).items()]
    return [sys.executable, "-m", "mnist_jax.train", *words]


def run_contents(workdir: Path) -> dict[str, Any]:
    """What must be the same, however often the run was stopped."""
    files = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    return read_outcome(workdir) | {
        "step": newest_step(workdir),
        # Orbax gives its data files random names; a signal saves at a step of its own.
        "files": sorted(
            re.sub("checkpoints/[0-9]+/", "checkpoints/STEP/", str(path))
            for path in files
            if path.parent.name != "d"
        ),
    }


@pytest.fixture(scope="module")
def uninterrupted(
    sample_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], float]:
    """A run that nothing stops: its contents, and its seconds with everything cached."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("first", "second"):
        started = time.perf_counter()
        subprocess.run(command(folder / name, sample_dir), check=True, capture_output=True)
    assert run_contents(folder / "first") == run_contents(folder / "second")
    return run_contents(folder / "second"), time.perf_counter() - started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "run"),
    [(signal.SIGKILL, i) for i in range(KILLS)] + [(signal.SIGTERM, i) for i in range(KILLS // 2)],
)
def test_a_killed_run_resumes_to_the_same_bits(
    number: signal.Signals,
    run: int,
    uninterrupted: tuple[dict[str, Any], float],
    sample_dir: Path,
    tmp_path: Path,
) -> None:
    """Killed one to three times, at random moments from the start of the process to its end."""
    expected, seconds = uninterrupted
    workdir, rng = tmp_path / "run", random.Random(f"{number} {run}")
    codes = {-number, 0}
    if number == signal.SIGTERM:  # the code depends on the moment
        codes |= {128 + number, INTERRUPTED}
    for _ in range(rng.choice([1, 2, 3])):
        pipe, words = subprocess.PIPE, command(workdir, sample_dir)
        process = subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(number)
        output, _ = process.communicate()
        assert "Traceback" not in output
        assert process.returncode in codes, output
        metrics = workdir / "metrics.jsonl"
        written = metrics.read_text().count("\n") if metrics.exists() else 0  # epochs
        assert written - newest_step(workdir) // STEPS <= 1  # epochs to repeat
        if process.returncode == INTERRUPTED:
            assert newest_step(workdir) >= STEPS * written
    process = subprocess.run(command(workdir, sample_dir), capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert run_contents(workdir) == expected


def start(workdir: Path, sample_dir: Path) -> subprocess.Popen[str]:
    """Starts a run; returns after its first epoch."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command(workdir, sample_dir), stdout=pipe, stderr=pipe, text=True)
    assert process.stdout
    assert any(line.startswith("epoch") for line in process.stdout)
    return process


@pytest.mark.parametrize("is_interrupted", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_survives_readers_that_close_its_output(
    is_interrupted: bool, sample_dir: Path, tmp_path: Path
) -> None:
    """With `2>&1 | tee`, Ctrl-C ends tee at once; the run still saves, and exits with 75."""
    process = start(tmp_path / "run", sample_dir)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stderr.close()
    if is_interrupted:
        process.send_signal(signal.SIGINT)
        assert process.wait() == INTERRUPTED
        assert newest_step(tmp_path / "run") > 0
    else:
        assert process.wait() == 0
        assert len(read_history(tmp_path / "run")) == EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.02, 0.2])
def test_a_scheduler_may_repeat_its_sigterm(
    seconds: float, sample_dir: Path, tmp_path: Path
) -> None:
    process = start(tmp_path / "run", sample_dir)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(seconds)
    _, errors = process.communicate()
    assert process.returncode == INTERRUPTED
    assert len(errors.splitlines()) == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_a_second_ctrl_c_during_a_save_ends_the_process_at_once(
    sample_dir: Path, tmp_path: Path
) -> None:
    """One of Orbax's threads then waits for minutes, and Python would wait for it."""
    code = """if True:
        import os, runpy, signal, sys
        from orbax.checkpoint.handlers import StandardCheckpointHandler as Handler
        async_save = Handler.async_save
        async def interrupted_save(*args, **kwargs):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            return await async_save(*args, **kwargs)
        Handler.async_save = interrupted_save
        runpy.run_module("mnist_jax.train", run_name="__main__")
    """
    words = command(tmp_path / "run", sample_dir)
    interrupted = [sys.executable, "-c", code, *words[3:]]
    process = subprocess.run(interrupted, capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (130, "interrupted\n")
    assert subprocess.run(words, capture_output=True).returncode == 0


def without_privileges(words: list[str]) -> list[str]:
    """A command that obeys permissions even if root runs the tests."""
    if os.geteuid():
        return words
    if not shutil.which("setpriv"):
        pytest.skip("root may write anywhere, and setpriv is not installed")
    capabilities = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}", *words]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closed", "mode"), [("64", 0o000), ("64/arrays/manifest.ocdbt", 0o000), ("", 0o555)]
)
def test_checkpoints_without_permission_are_named_and_kept(
    closed: str, mode: int, sample_dir: Path, sample_run: Result, tmp_path: Path
) -> None:
    shutil.copytree(sample_run.workdir, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    path = checkpoints / closed
    before, allowed = sorted(checkpoints.iterdir()), path.stat().st_mode
    path.chmod(mode)
    words = without_privileges(command(tmp_path / "run", sample_dir))
    process = subprocess.run(words, capture_output=True, text=True)
    path.chmod(allowed)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert "permission" in line.lower()
    assert str(checkpoints) in line
    assert sorted(checkpoints.iterdir()) == before


@pytest.mark.slow
def test_memory_and_open_files_do_not_grow_with_the_epochs(
    sample_dir: Path, tmp_path: Path
) -> None:
    code = """if True:
        import json, os, sys
        from mnist_jax.config import Config
        from mnist_jax.runtime.metric_writer import MetricWriter
        from mnist_jax.train import train_and_evaluate
        write, seen = MetricWriter.write, {}
        def write_and_measure(self, record):
            write(self, record)
            pages = int(open("/proc/self/statm").read().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            seen[record["epoch"]] = (memory, len(os.listdir("/proc/self/fd")))
        MetricWriter.write = write_and_measure
        config = Config(dataset="mnist_sample", data_dir=sys.argv[1], num_epochs=200)
        train_and_evaluate(config, sys.argv[2])
        print(json.dumps([seen[20], seen[200]]))
    """
    arguments = [sys.executable, "-c", code, str(sample_dir), str(tmp_path / "run")]
    process = subprocess.run(arguments, check=True, capture_output=True, text=True)
    (memory, files), (later_memory, later_files) = json.loads(process.stdout.splitlines()[-1])
    assert later_memory - memory < 20, (memory, later_memory)
    assert later_files <= files


@pytest.mark.slow
def test_a_save_blocks_training_for_less_than_50_ms(sample_run: Result, tmp_path: Path) -> None:
    """Not counting the time for which training would wait for the previous save."""
    seconds = []
    with RunDirectory(tmp_path, {}) as workdir, Checkpoints(workdir) as checkpoints:
        for step in range(1, 10):
            started = time.perf_counter()
            checkpoints.save(step, sample_run.state, {})
            seconds.append(time.perf_counter() - started)
            checkpoints.wait()
    # The first save waits. The slowest one depends on who shares the machine.
    assert statistics.median(seconds[1:]) < 0.05


def test_a_full_disk_stops_the_run_and_loses_nothing(
    sample_dir: Path, sample_run: Result, tmp_path: Path
) -> None:
    settings = {"num_epochs": 2, "checkpoint_every_steps": 8, "keep": 9}
    with small_disk(tmp_path / "disk", "12m") as disk:  # enough for three checkpoints
        words = command(disk / "run", sample_dir, **settings)
        process = subprocess.run(words, capture_output=True, text=True)
        shutil.copytree(disk / "run", tmp_path / "run")  # where there is more space
    directory = disk / "run" / "checkpoints"
    message = f"error: no checkpoint can be saved in {directory}: No space left on device\n"
    assert (process.returncode, process.stderr) == (1, message)
    config = Config(dataset="mnist_sample", data_dir=str(sample_dir), **settings)
    assert newest_step(tmp_path / "run") > 0
    assert_same_run(train_and_evaluate(config, tmp_path / "run"), sample_run)


@pytest.mark.slow
def test_a_write_that_fails_in_the_background_is_one_line(sample_dir: Path, tmp_path: Path) -> None:
    """Here because of a limit on the size of a file."""
    limit = ["prlimit", f"--fsize={200 * 1024}"]
    if not shutil.which(limit[0]):
        pytest.skip("prlimit is not installed")
    words = command(tmp_path / "run", sample_dir)
    process = subprocess.run([*limit, *words], capture_output=True, text=True)
    directory = tmp_path / "run" / "checkpoints"
    message = f"error: no checkpoint can be saved in {directory}: File too large\n"
    assert (process.returncode, process.stderr) == (1, message)
    assert subprocess.run(words, capture_output=True).returncode == 0
