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

from mnist_jax import train
from mnist_jax.commands import evaluate, predict
from mnist_jax.config import Config, load_config
from mnist_jax.runtime.errors import Interrupted, RunError, UsageError
from mnist_jax.train import Result, train_and_evaluate
from tests.helpers import (
    SEVEN_PNG,
    assert_same_run,
    call,
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
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path)
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
    """The run leaves alone what is in its place."""
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1, "batch_size": 64}, "seed is 0 in the saved run and 1 now"),
        ({"seed": 1, "batch_size": 64}, "batch_size is 128 in the saved run and 64 now"),
        ({"schedule": "linear"}, 'schedule is "constant" in the saved run and "linear" now'),
        ({"num_epochs": 1}, "is already in epoch 2; increase --num-epochs"),
    ],
)
def test_another_config_is_refused_field_by_field(
    settings: dict[str, Any], message: str, config: Config, finished: Path
) -> None:
    before = snapshot(finished)
    with pytest.raises(UsageError, match=message):
        train_and_evaluate(replace(config, keep=1, **settings), finished)
    assert snapshot(finished) == before


def test_an_epoch_in_progress_counts_as_an_epoch(
    config: Config, interrupt: Any, tmp_path: Path
) -> None:
    interrupt(config, tmp_path, 5)
    with pytest.raises(UsageError, match="is already in epoch 2; increase --num-epochs"):
        train_and_evaluate(replace(config, num_epochs=1), tmp_path)


def test_a_run_with_a_schedule_refuses_more_epochs(
    config: Config, interrupt: Any, tmp_path: Path
) -> None:
    config = replace(config, schedule="linear")
    interrupt(config, tmp_path, 1)
    with pytest.raises(UsageError, match="num_epochs is 2 in the saved run and 3 now"):
        train_and_evaluate(replace(config, num_epochs=3), tmp_path)


def copy_data(config: Config, folder: Path, name: str, change: Callable[[Any], None]) -> Config:
    """The config with a copy of the decoded sample, changed, as the dataset `name`."""
    cache = "mnist_jax/mnist_sample.npz"
    with np.load(Path(config.data_dir, cache)) as file:
        arrays = {key: file[key] for key in file.files} | {"name": np.array(name)}
    change(arrays["train_images"])
    (folder / cache).parent.mkdir(parents=True)
    shutil.copy(Path(config.data_dir, cache), folder / cache)
    np.savez(folder / "mnist_jax" / f"{name}.npz", **arrays)
    return replace(config, data_dir=str(folder))


def test_other_examples_of_the_same_name_are_refused(
    config: Config, finished: Path, tmp_path: Path
) -> None:
    def change_a_pixel(images: Any) -> None:
        images[17, 14, 14] ^= 1

    config = copy_data(config, tmp_path / "data", "mnist_sample", change_a_pixel)
    with pytest.raises(UsageError, match="crc32_of_examples is"):
        train_and_evaluate(config, finished)


def test_a_run_that_fell_back_on_the_sample_continues_with_it(
    config: Config, sample_run: Result, interrupt: Any, tmp_path: Path
) -> None:
    """Also if mnist can be loaded by now: here, the images of the sample upside down."""
    config = replace(config, dataset="mnist")
    interrupt(config, tmp_path / "run", 5)

    def turn(images: Any) -> None:
        images[:] = images[:, ::-1]

    config = copy_data(config, tmp_path / "data", "mnist", turn)
    with pytest.raises(RunError, match="uses mnist_sample, not the full data"):
        train_and_evaluate(replace(config, require_full_data=True), tmp_path / "run")
    assert_same_run(train_and_evaluate(config, tmp_path / "run"), sample_run)


def test_a_run_whose_checkpoints_are_gone_is_refused(
    config: Config, finished: Path, after_chunk: AfterChunk, tmp_path: Path
) -> None:
    """A finished run, and one that has crashed in its first epoch."""
    after_chunk(3, crash)
    with pytest.raises(ZeroDivisionError):
        train_and_evaluate(replace(config, checkpoint_every_steps=10), tmp_path / "run")
    for folder in (finished, tmp_path / "run"):
        shutil.rmtree(folder / "checkpoints")
        before = snapshot(folder)
        with pytest.raises(RunError, match=f"the checkpoints of {folder} are missing"):
            train_and_evaluate(config, folder)
        assert snapshot(folder) == before


def test_epochs_whose_checkpoints_are_gone_are_named_and_trained_again(
    config: Config, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, num_epochs=3)
    expected = train_and_evaluate(config, finished)
    for step in (64, 96):
        shutil.rmtree(finished / "checkpoints" / str(step))
    again = train_and_evaluate(config, finished)
    assert "checkpoints after epoch 1 are missing" in caplog.text
    assert (again.train, again.test) == (expected.train, expected.test)


@pytest.mark.usefixtures("tests_cache")
@pytest.mark.parametrize("command", [train, evaluate, predict])
def test_a_run_in_the_old_format_is_refused_in_one_line(
    command: Any, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "run.json").write_text('{"dataset": "mnist_sample", "mnist_jax": "0.1.0"}')
    words = ["--workdir", finished]
    if command is train:
        words += ["--config", finished / "config.json"]
    if command is predict:
        (finished / "seven.png").write_bytes(SEVEN_PNG)
        words += [finished / "seven.png"]
    before = snapshot(finished)
    assert call(command, *words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {finished} has format 1; this version reads format 2 only")
    assert snapshot(finished) == before


def test_checkpoints_without_a_run_json_are_refused(config: Config, finished: Path) -> None:
    (finished / "run.json").unlink()
    before = snapshot(finished)
    with pytest.raises(RunError, match="is not empty and holds no run; use another --workdir"):
        train_and_evaluate(config, finished)
    assert snapshot(finished) == before
