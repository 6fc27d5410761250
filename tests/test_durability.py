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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_jax.checkpoint import Checkpoints
from mnist_jax.config import Config
from mnist_jax.errors import RunError
from mnist_jax.runtime import INTERRUPTED
from mnist_jax.train import train_and_evaluate
from tests.test_resume import read_history

KILLS = int(os.environ.get("MNIST_JAX_KILLS", "10"))
EPOCHS, STEPS, CHUNK = 12, 32, 4


def command(workdir: Path, sample_dir: Path) -> list[str]:
    flags = {
        "dataset": "mnist_sample",
        "data-dir": sample_dir,
        "num-epochs": EPOCHS,
        "steps-per-chunk": CHUNK,
        "checkpoint-every-steps": 12,
        "workdir": workdir,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "mnist_jax.train", *words]


def contents(workdir: Path) -> dict[str, Any]:
    """What must be the same, however often the run was stopped."""
    record = workdir / "checkpoints" / str(EPOCHS * STEPS) / "record" / "metadata"
    files = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    return {
        "history": read_history(workdir),
        "result": (workdir / "result.json").read_text(),
        "digest of the arrays": json.loads(record.read_text())["record"]["arrays"],
        # Orbax gives its data files random names; a stop saves at a step of its own.
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
    assert contents(folder / "first") == contents(folder / "second")
    return contents(folder / "second"), time.perf_counter() - started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "run"),
    [(signal.SIGKILL, i) for i in range(KILLS)] + [(signal.SIGTERM, i) for i in range(KILLS // 2)],
)
def test_a_killed_run_continues_to_the_same_bits(
    number: signal.Signals,
    run: int,
    uninterrupted: tuple[dict[str, Any], float],
    sample_dir: Path,
    tmp_path: Path,
) -> None:
    """Killed one to three times, at random moments from the start of the process to its end."""
    expected, seconds = uninterrupted
    workdir, rng = tmp_path / "run", random.Random(f"{number} {run}")
    for _ in range(rng.choice([1, 2, 3])):
        process = subprocess.Popen(
            command(workdir, sample_dir),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(number)
        output, _ = process.communicate()
        assert "Traceback" not in output
        assert (
            process.returncode
            in {
                signal.SIGKILL: (-number, 0),
                signal.SIGTERM: (-number, 128 + number, INTERRUPTED, 0),  # by when it came
            }[number]
        ), output
        if not (workdir / "checkpoints").exists():
            continue
        saved = [int(path.name) for path in (workdir / "checkpoints").glob("*[0-9]")]
        written = [r["epoch"] for r in read_whole_lines(workdir / "metrics.jsonl")]
        assert max(written, default=0) - max(saved, default=0) // STEPS <= 1  # epochs to repeat
        if process.returncode == INTERRUPTED:
            assert max(saved) >= STEPS * max(written, default=0)
    process = subprocess.run(command(workdir, sample_dir), capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert contents(workdir) == expected


def read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """The records in a metrics.jsonl whose last line may be cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.mark.slow
def test_a_reader_that_leaves_stops_no_run(sample_dir: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path / "run", sample_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (0, b"")
    assert len(read_history(tmp_path / "run")) == EPOCHS


def start(workdir: Path, sample_dir: Path) -> subprocess.Popen[str]:
    """Starts a run; returns after its first epoch."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command(workdir, sample_dir), stdout=pipe, stderr=pipe, text=True)
    assert process.stdout
    assert any(line.startswith("epoch") for line in process.stdout)
    return process


def test_an_interrupt_is_told_by_its_code_though_the_reader_left(
    sample_dir: Path, tmp_path: Path
) -> None:
    """As at Ctrl-C with `2>&1 | tee`."""
    process = start(tmp_path / "run", sample_dir)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait() == INTERRUPTED


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.4])
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
def test_a_second_interrupt_during_a_save_leaves_at_once(sample_dir: Path, tmp_path: Path) -> None:
    """One of Orbax's threads then waits for minutes, and Python for it."""
    arguments = command(tmp_path / "run", sample_dir)[3:]
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
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert (process.returncode, process.stderr) == (130, "interrupted\n")
    process = subprocess.run(command(tmp_path / "run", sample_dir), capture_output=True)
    assert process.returncode == 0


def without_privileges(words: list[str]) -> list[str]:
    """A command to which permissions apply, though root runs the tests."""
    if os.geteuid():
        return words
    if not shutil.which("setpriv"):
        pytest.skip("root may write anywhere, and there is no setpriv")
    capabilities = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}", *words]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closed", "mode"),
    [
        ("64", 0o000),
        ("64/arrays", 0o000),
        ("64/record", 0o000),
        ("64/arrays/manifest.ocdbt", 0o000),
        ("", 0o555),
    ],
)
def test_checkpoints_without_permission_are_one_line_and_lose_nothing(
    closed: str, mode: int, sample_dir: Path, tmp_path: Path
) -> None:
    words = [*command(tmp_path / "run", sample_dir), "--num-epochs"]
    subprocess.run([*words, "2"], check=True, capture_output=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    path = checkpoints / closed
    before, allowed = sorted(checkpoints.iterdir()), path.stat().st_mode
    path.chmod(mode)
    process = subprocess.run(
        without_privileges([*words, "3"]), capture_output=True, text=True, check=False
    )
    path.chmod(allowed)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert "permission" in line.lower()
    assert str(checkpoints) in line
    assert sorted(checkpoints.iterdir()) == before


@pytest.mark.slow
def test_memory_and_files_do_not_grow_with_the_epochs(sample_dir: Path, tmp_path: Path) -> None:
    code = """if True:
        import json, os, sys
        from mnist_jax import run_log, train
        from mnist_jax.config import Config
        finish_epoch, seen = run_log.RunLog.finish_epoch, {}
        def finish_and_look(self, epoch, *args):
            finish_epoch(self, epoch, *args)
            pages = int(open("/proc/self/statm").read().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            seen[epoch] = (memory, len(os.listdir("/proc/self/fd")))
        run_log.RunLog.finish_epoch = finish_and_look
        config = Config(dataset="mnist_sample", data_dir=sys.argv[1], num_epochs=200)
        train.train_and_evaluate(config, sys.argv[2])
        print(json.dumps([seen[20], seen[200]]))
    """
    arguments = [sys.executable, "-c", code, str(sample_dir), str(tmp_path / "run")]
    process = subprocess.run(arguments, check=True, capture_output=True, text=True)
    (memory, files), (later_memory, later_files) = json.loads(process.stdout.splitlines()[-1])
    assert later_memory - memory < 20
    assert later_files <= files


@pytest.mark.slow
def test_a_save_blocks_training_for_less_than_50_ms(
    mnist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = []
    save = Checkpoints.save

    def timed_save(*args: Any) -> None:
        started = time.perf_counter()
        save(*args)
        seconds.append(time.perf_counter() - started)

    monkeypatch.setattr(Checkpoints, "save", timed_save)
    config = Config(data_dir=str(mnist_dir), num_epochs=8)
    train_and_evaluate(config, tmp_path / "run")
    assert len(seconds) == 8
    assert statistics.median(seconds) < 0.05  # the worst depends on who shares the machine


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 12 MiB of space: enough for two checkpoints, not for five."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_save_that_fails_in_the_background_is_one_line(sample_dir: Path, tmp_path: Path) -> None:
    """With a limit on the size of a file, which no look at the free space foresees."""
    limit = ["prlimit", f"--fsize={200 * 1024}"]
    if not shutil.which(limit[0]):
        pytest.skip("no prlimit")
    process = subprocess.run(
        [*limit, *command(tmp_path / "run", sample_dir)], capture_output=True, text=True
    )
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: no checkpoint can be saved in")
    process = subprocess.run(command(tmp_path / "run", sample_dir), capture_output=True)
    assert process.returncode == 0


def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(
    small_disk: Path, sample_dir: Path, tmp_path: Path
) -> None:
    config = Config(dataset="mnist_sample", data_dir=str(sample_dir), num_epochs=5, keep=5)
    with pytest.raises(RunError, match="the disk is full; 4 MiB are needed"):
        train_and_evaluate(config, small_disk / "run")
    shutil.copytree(small_disk / "run", tmp_path / "run")  # where there is more space
    continued = train_and_evaluate(config, tmp_path / "run")
    whole = train_and_evaluate(config, tmp_path / "whole")
    assert read_history(continued.workdir) == read_history(whole.workdir)
