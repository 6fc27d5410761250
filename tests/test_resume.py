"""A run that stops and resumes gives the same bits as `sample_run`, which nothing stops."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest

from mnist_jax.config import Config, load_config
from mnist_jax.runtime.errors import Interrupted, RunError, UsageError
from mnist_jax.train import Result, train_and_evaluate
from tests.helpers import (
    assert_same_run,
    newest_step,
    read_checkpoint_record,
    read_history,
    snapshot,
)

AfterChunk = Callable[[int, Callable[[], Any]], None]


@pytest.fixture(scope="module")
def config(sample_dir: Path) -> Config:
    """The settings of `sample_run`, in chunks that end at the steps 10, 20, 30, 32, 42, ..."""
    return Config(
        dataset="mnist_sample", data_dir=str(sample_dir), num_epochs=2, steps_per_chunk=10
    )


@pytest.fixture
def finished(sample_run: Result, tmp_path: Path) -> Path:
    """A copy of the directory of `sample_run`."""
    return Path(shutil.copytree(sample_run.workdir, tmp_path / "finished"))


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise ZeroDivisionError


@pytest.fixture
def interrupt(after_chunk: AfterChunk) -> Callable[[Config, Path, int], None]:
    """`interrupt(config, workdir, n)` trains until a SIGTERM in the n-th chunk."""

    def run(config: Config, workdir: Path, n: int) -> None:
        after_chunk(n, terminate)
        with pytest.raises(Interrupted):
            train_and_evaluate(config, workdir)

    return run


def status(workdir: Path) -> str:
    return json.loads((workdir / "run.json").read_text())["status"]


@pytest.mark.parametrize(
    ("number", "chunks", "step"), [(signal.SIGTERM, 3, 30), (signal.SIGINT, 4, 32)]
)
def test_a_signal_saves_and_stops_the_run(
    number: int,
    chunks: int,
    step: int,
    config: Config,
    sample_run: Result,
    after_chunk: AfterChunk,
    tmp_path: Path,
) -> None:
    """Within an epoch, or at its end."""
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    after_chunk(chunks, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=f"--workdir {tmp_path}"):
        train_and_evaluate(config, tmp_path)
    assert (newest_step(tmp_path), status(tmp_path)) == (step, "interrupted")
    assert not (tmp_path / "result.json").exists()
    assert_same_run(train_and_evaluate(config, tmp_path), sample_run)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_in_the_last_chunk_lets_the_run_finish(
    config: Config, sample_run: Result, after_chunk: AfterChunk, tmp_path: Path
) -> None:
    after_chunk(8, terminate)
    assert_same_run(train_and_evaluate(config, tmp_path), sample_run)


def test_a_second_ctrl_c_stops_at_once_and_leaves_a_run_to_resume(
    config: Config, sample_run: Result, after_chunk: AfterChunk, tmp_path: Path
) -> None:
    def signal_often() -> None:
        terminate()
        terminate()  # a scheduler may repeat it
        os.kill(os.getpid(), signal.SIGINT)

    after_chunk(6, signal_often)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path)
    assert signal.getsignal(signal.SIGINT) == handler
    assert (newest_step(tmp_path), status(tmp_path)) == (32, "interrupted")
    assert_same_run(train_and_evaluate(config, tmp_path), sample_run)


@pytest.mark.parametrize(
    ("every", "chunks", "step", "message"),
    [(0, 1, 0, "has no checkpoint yet; starting from"), (15, 8, 52, "after step 52")],
)
def test_a_crash_loses_only_the_steps_after_the_newest_checkpoint(
    every: int,
    chunks: int,
    step: int,
    message: str,
    config: Config,
    sample_run: Result,
    after_chunk: AfterChunk,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = replace(config, checkpoint_every_steps=every)
    after_chunk(chunks, crash)
    with pytest.raises(ZeroDivisionError):
        train_and_evaluate(config, tmp_path)
    assert (newest_step(tmp_path), status(tmp_path)) == (step, "failed")
    assert_same_run(train_and_evaluate(config, tmp_path), sample_run)
    assert message in capsys.readouterr().out


def test_a_resumed_epoch_reports_the_same_running_accuracy(
    config: Config, sample_run: Result, interrupt: Any, tmp_path: Path
) -> None:
    """Also with other settings that change no result."""
    interrupt(config, tmp_path, 3)
    running = read_checkpoint_record(tmp_path)["progress"]["running_train"]
    assert running["count"] == 30 * 128
    other = replace(config, steps_per_chunk=7, keep=1, checkpoint_every_steps=5, tensorboard=True)
    result = train_and_evaluate(other, tmp_path)
    assert 0 < running["correct"] < result.history[0]["running_train_correct"]
    assert read_history(tmp_path) == read_history(sample_run.workdir)
    chex.assert_trees_all_equal(result.state, sample_run.state)
    assert os.listdir(tmp_path / "checkpoints") == ["64"]


def test_a_directory_that_is_moved_during_the_run_stops_it(
    config: Config, sample_run: Result, after_chunk: AfterChunk, tmp_path: Path
) -> None:
    """Nothing is written at the old path."""
    here, moved = tmp_path / "run", tmp_path / "moved"

    def move() -> None:
        here.rename(moved)
        (here / "checkpoints").mkdir(parents=True)

    after_chunk(2, move)
    with pytest.raises(RunError, match=f"{here} was moved or deleted during the run"):
        train_and_evaluate(config, here)
    assert [path.name for path in here.rglob("*")] == ["checkpoints"]
    assert_same_run(train_and_evaluate(config, moved), sample_run)


def test_a_finished_run_shows_its_result_and_does_not_train(
    config: Config,
    sample_run: Result,
    finished: Path,
    after_chunk: AfterChunk,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In any thread: signals are deferred in the main thread only."""
    config = replace(config, steps_per_chunk=Config.steps_per_chunk)
    before, results = snapshot(finished), []
    after_chunk(1, crash)
    thread = threading.Thread(target=lambda: results.append(train_and_evaluate(config, finished)))
    thread.start()
    thread.join()
    assert_same_run(results[0], sample_run)
    text = capsys.readouterr().out
    assert f"{finished} is finished" in text
    assert f"Test accuracy: {100 * sample_run.test.accuracy:.2f} %" in text
    assert snapshot(finished) == before


def test_more_epochs_continue_a_run(config: Config, sample_run: Result, tmp_path: Path) -> None:
    train_and_evaluate(replace(config, num_epochs=1), tmp_path)
    assert_same_run(train_and_evaluate(config, tmp_path), sample_run)
    assert load_config(tmp_path / "config.json").num_epochs == 2


def test_an_epoch_in_progress_counts_as_an_epoch(
    config: Config, interrupt: Any, tmp_path: Path
) -> None:
    interrupt(config, tmp_path, 5)
    with pytest.raises(UsageError, match=r"is already at step .*; increase --num-epochs"):
        train_and_evaluate(replace(config, num_epochs=1), tmp_path)


def copy_data(config: Config, folder: Path, name: str) -> Config:
    """The config with other data: as the dataset `name`, the sample upside down."""
    cache = folder / "mnist_jax"
    shutil.copytree(Path(config.data_dir, "mnist_jax"), cache)
    with np.load(cache / "mnist_sample.npz") as file:
        arrays = {**file, "name": np.array(name)}
    arrays["train_images"] = arrays["train_images"][:, ::-1]
    np.savez(cache / f"{name}.npz", **arrays)
    return replace(config, data_dir=str(folder))


def test_other_examples_of_the_same_name_are_refused(
    config: Config, finished: Path, tmp_path: Path
) -> None:
    config = copy_data(config, tmp_path / "data", "mnist_sample")
    before = snapshot(finished)
    with pytest.raises(UsageError, match="crc32_of_examples is"):
        train_and_evaluate(config, finished)
    assert snapshot(finished) == before


def test_a_run_that_fell_back_on_the_sample_continues_with_it(
    config: Config, sample_run: Result, interrupt: Any, tmp_path: Path
) -> None:
    """Also if mnist can be loaded by now."""
    config = replace(config, dataset="mnist")
    interrupt(config, tmp_path / "run", 5)
    config = copy_data(config, tmp_path / "data", "mnist")
    with pytest.raises(RunError, match="uses mnist_sample, not the full data"):
        train_and_evaluate(replace(config, require_full_data=True), tmp_path / "run")
    assert_same_run(train_and_evaluate(config, tmp_path / "run"), sample_run)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_crashed_run_whose_checkpoints_are_gone_is_refused(
    is_killed: bool, config: Config, after_chunk: AfterChunk, tmp_path: Path
) -> None:
    """Also if it was killed before run.json said that a checkpoint exists, and then resumed."""
    after_chunk(3, crash)  # in the first epoch, before any metrics are written
    with pytest.raises(ZeroDivisionError):
        train_and_evaluate(replace(config, checkpoint_every_steps=10), tmp_path)
    if is_killed:
        info = json.loads((tmp_path / "run.json").read_text())
        (tmp_path / "run.json").write_text(json.dumps(info | {"saved": False}))
        after_chunk(1, crash)
        with pytest.raises(ZeroDivisionError):
            train_and_evaluate(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match=f"the checkpoints of {tmp_path} are missing"):
        train_and_evaluate(config, tmp_path)
    assert snapshot(tmp_path) == before
